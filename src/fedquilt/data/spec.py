"""What a user writes about data: one :class:`TaskConfig` per task and one :class:`PartitionConfig` per run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedquilt.data.labels import key
from fedquilt.errors import ConfigError, did_you_mean

Kind = Literal["classification", "regression", "generation"]
Metric = Literal[
    "accuracy", "f1", "matthews", "choice", "choice_f1", "exact", "pearson", "spearman", "loss", "perplexity", "rouge_l", "token_f1"
]
Prompt = Literal["chat", "alpaca"]
How = Literal["dirichlet-task", "dirichlet-label", "iid", "column", "shards", "file"]
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl")
FILE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
# The first is the default; for generation the second is reported too.
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews", "choice", "choice_f1", "exact"),
    "regression": ("pearson", "spearman"),
    "generation": ("loss", "perplexity", "rouge_l", "exact", "token_f1"),
}
GROUPED = ("choice", "choice_f1", "exact")  # of whole questions
WRITTEN = ("rouge_l", "exact", "token_f1")  # of what a language model writes


@dataclass(frozen=True)
class Preset:
    """The fields of a published task: columns, labels and splits as on the hub."""

    source: str
    text: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[Metric, ...]
    kind: Kind = "classification"
    eval_split: str | None = "validation"
    """The split on the hub; a local file of the same task is looked for as its first word: ``validation``, ``test``. None: part of
    ``train`` is held out."""
    where: tuple[tuple[str, str], ...] = ()
    """(column, value) of the rows that belong to the task."""
    image: str | None = None
    label: str = "label"
    form: str | None = None
    group: str | None = None


_PAIR = ("sentence1", "sentence2")
_SAME = ("not_equivalent", "equivalent")
_FOLLOWS = ("entailment", "not_entailment")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


def _glue(name: str, text: tuple[str, ...], labels: tuple[str, ...], *metrics: Metric) -> tuple[str, Preset]:
    return f"glue/{name}", Preset(f"hub:nyu-mll/glue:{name}", text, labels, metrics or ("accuracy",))


# Label order and columns: the hub's nyu-mll/glue. Metrics: Wang et al. 2019, "GLUE" (ICLR), table 1.
PRESETS: dict[str, Preset] = dict(
    [
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), "matthews"),
        _glue("sst2", ("sentence",), ("negative", "positive")),
        _glue("mrpc", _PAIR, _SAME, "accuracy", "f1"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy", "f1"),
        _glue("qnli", ("question", "sentence"), _FOLLOWS),
        _glue("rte", _PAIR, _FOLLOWS),
        _glue("wnli", _PAIR, ("not_entailment", "entailment")),
    ]
) | {
    "glue/stsb": Preset("hub:nyu-mll/glue:stsb", _PAIR, None, ("pearson", "spearman"), "regression"),
    "glue/mnli": Preset(
        "hub:nyu-mll/glue:mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        eval_split="validation_matched",
    ),
    # Krizhevsky 2009, "Learning multiple layers of features from tiny images"; columns of the hub's uoft-cs/cifar10 and cifar100.
    "cifar10": Preset("hub:uoft-cs/cifar10", (), _CIFAR10, ("accuracy",), eval_split="test", image="img"),
    "cifar100": Preset(
        "hub:uoft-cs/cifar100", (), tuple(_CIFAR100.split()), ("accuracy",), eval_split="test", image="img", label="fine_label"
    ),
}
# Conover et al. 2023, "Free Dolly": one file, eight kinds of instruction; FL-TAC's eight tasks (Ping et al. 2024, section 4.1).
DOLLY = (
    "brainstorming",
    "classification",
    "closed_qa",
    "creative_writing",
    "general_qa",
    "information_extraction",
    "open_qa",
    "summarization",
)
PRESETS |= {
    f"dolly/{category}": Preset(
        "hub:databricks/databricks-dolly-15k",
        ("text",),
        None,
        ("loss", "perplexity"),
        "generation",
        None,
        (("category", category),),
    )
    for category in DOLLY
}


def _superglue(name: str, labels: tuple[str, ...], *metrics: Metric, grouped: bool = False) -> tuple[str, Preset]:
    group = "group" if grouped else None
    return f"superglue/{name}", Preset(f"hub:aps/super_glue:{name}", _FORM, labels, metrics, form=name, group=group)


# Wang et al. 2019, "SuperGLUE" (arXiv 1905.00537), table 1. Columns and label order: the hub's aps/super_glue.
_FORM, _CHOICE, _TRUTH = ("first", "second"), ("no", "yes"), ("false", "true")
PRESETS |= dict(
    [
        _superglue("copa", _CHOICE, "choice", grouped=True),
        _superglue("multirc", _CHOICE, "f1", "exact", grouped=True),
        _superglue("record", _CHOICE, "choice_f1", "choice", grouped=True),
        _superglue("wic", _TRUTH, "accuracy"),
        _superglue("wsc", _TRUTH, "accuracy"),
    ]
) | {
    "superglue/boolq": Preset("hub:aps/super_glue:boolq", ("question", "passage"), _TRUTH, ("accuracy",)),
    "superglue/cb": Preset(
        "hub:aps/super_glue:cb", ("premise", "hypothesis"), ("entailment", "contradiction", "neutral"), ("accuracy", "f1")
    ),
    "superglue/rte": Preset("hub:aps/super_glue:rte", ("premise", "hypothesis"), _FOLLOWS, ("accuracy",)),
}
# Rajpurkar et al. 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822), answered by a language model in its own words.
PRESETS |= {
    name: Preset(f"hub:rajpurkar/{hub}", ("text",), None, ("token_f1", "exact", "loss"), "generation", form="squad")
    for name, hub in (("squad", "squad"), ("squad2", "squad_v2"))
}


def _filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the gaps filled by its preset; a local file without ``{split}`` has no evaluation split."""
    name = given["preset"]
    preset = PRESETS.get(name)
    if preset is None:
        raise ConfigError(f"there is no preset {name!r}", where="tasks.preset", fix=did_you_mean(str(name), PRESETS))
    source = given.get("source") or preset.source
    eval_split: str | None = preset.eval_split
    if not source.startswith("hub:"):
        eval_split = eval_split.partition("_")[0] if eval_split and "{split}" in source else None
    fields: dict[str, Any] = {"labels": preset.labels, "metrics": preset.metrics, "kind": preset.kind, "label": preset.label}
    fields |= {"image": preset.image} if preset.image else {"text": preset.text}
    fields |= {"form": preset.form, "group": preset.group}
    fields |= {"source": source, "eval_split": None if given.get("eval_where") else eval_split, "where": dict(preset.where)}
    fields |= {name: value for name, value in given.items() if value is not None}
    if isinstance(fields["where"], Mapping):  # what a user adds narrows the preset's rows
        fields["where"] = dict(preset.where) | dict(fields["where"])
    return fields


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _filter(value: Any) -> Any:
    """``{column: value}`` or ``{column: [values]}`` with every value as the text by which it is compared."""
    if not isinstance(value, Mapping):
        return value
    return {name: tuple(key(x) for x in (given if isinstance(given, (list, tuple)) else [given])) for name, given in value.items()}


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Filter = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_filter)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskConfig(_Config):
    """One task: where its rows are and which columns mean what. ``preset`` fills everything that is not given."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Also the key in result files."""
    preset: str | None = None
    """``glue/sst2`` and the other eight GLUE tasks, ``superglue/copa`` and the other seven of SuperGLUE, ``squad``, ``squad2``,
    ``cifar10``, ``cifar100``; ``dolly/open_qa`` and the other seven of Dolly."""
    source: str = ""
    """``hub:REPO[:CONFIG]``, ``file:PATH`` (``{split}`` in PATH stands for the split's name), ``folder:PATH`` of images, or
    ``asset:NAME``."""
    text: Names = ("text",)
    """One or two columns; none where ``image`` is given."""
    image: str | None = None
    """The column of an image task; ``image`` for a ``folder:``."""
    label: str = "label"
    form: str | None = None
    """How published rows become rows with texts and labels: ``copa``, ``multirc``, ``record``, ``wic``, ``wsc``, ``squad``."""
    group: str | None = None
    """Column of the question that a candidate belongs to: candidates are rows with labels no and yes, questions are never parted,
    and the metrics ``choice`` and ``exact`` are of questions."""
    labels: tuple[str, ...] | None = None
    """The label set in order; found in the training rows when not given."""
    kind: Kind = "classification"
    instruction: str = "instruction"
    """``generation``: column of what is asked."""
    context: str = "context"
    """``generation``: column of what the instruction is about; may be empty in a row; ``""``: there is no such column."""
    response: str = "response"
    """``generation``: column of the answer to be learnt."""
    prompt: Prompt = "chat"
    """``generation``: how instruction and context become a prompt: the tokenizer's chat template, or Alpaca's."""
    where: Filter = {}
    """Only rows that have one of the values in the column, for every column named here."""
    eval_where: Filter = {}
    """Of these, the rows that are for evaluation and not for training."""
    metrics: tuple[Metric, ...] = ()
    """The first one is the primary."""
    train_split: str = "train"
    eval_split: str | None = None
    """Without one, ``eval_share`` of the training rows is held out."""
    eval_share: float = Field(default=0.1, gt=0, lt=1)
    first_round: int = Field(default=1, ge=1)
    """Clients have the task's data from this round on: a task that appears in mid-run."""
    max_train: int | None = Field(default=None, ge=1)
    max_eval: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        filled = _filled(given) if given.get("preset") is not None else dict(given)
        if filled.get("image") is None and str(filled.get("source", "")).startswith("folder:"):
            filled["image"] = "image"
        if filled.get("image") is not None:
            filled.setdefault("text", ())
        if not filled.get("metrics"):
            known = METRICS.get(filled.get("kind", "classification"), ("accuracy",))
            filled["metrics"] = known[:2] if filled.get("kind") == "generation" else known[:1]
        return filled

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the input: ``image``, ``text``, or instruction, context (if there is one) and response."""
        if self.image is not None:
            return (self.image,)
        if self.kind != "generation":
            return self.text
        return tuple(name for name in (self.instruction, self.context, self.response) if name)

    @model_validator(mode="after")
    def _check(self) -> Self:
        where = f"task {self.name!r}"
        if self.image is not None and self.text:
            raise ConfigError("a task has texts or images, not both", where=where, fix="leave out either 'text' or 'image'")
        if self.image is None and not 1 <= len(self.text) <= 2:
            raise ConfigError(f"text needs one or two columns, not {len(self.text)}", where=where)
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"labels holds a name twice: {', '.join(self.labels)}", where=where)
        if self.labels is not None and self.kind == "classification" and len(self.labels) < 2:
            raise ConfigError("labels needs at least two names", where=where)
        if self.eval_where and self.eval_split is not None:
            fix = "give one of them"
            raise ConfigError("eval_where and eval_split both say which rows are for evaluation", where=where, fix=fix)
        if self.eval_split == self.train_split:
            raise ConfigError(f"{self.eval_split!r} is the training and the evaluation split", where=where)
        _check_metrics(self.kind, self.metrics, where)
        _check_groups(self, where)
        _check_source(self.source, where)
        if self.image is not None and PurePath(self.source).suffix in TEXT_SUFFIXES:
            fix = "use parquet or arrow with the images' bytes, or source = 'folder:PATH/{split}'"
            raise ConfigError(f"a {PurePath(self.source).suffix} file holds no images", where=where, fix=fix)
        return self


def _check_metrics(kind: Kind, metrics: tuple[Metric, ...], where: str) -> None:
    for name in metrics:
        if name not in METRICS[kind]:
            raise ConfigError(f"metric {name!r} is not for {kind}", where=where, fix=did_you_mean(name, METRICS[kind]))


def _check_groups(task: TaskConfig, where: str) -> None:
    wanting = [name for name in task.metrics if name in GROUPED] if task.kind == "classification" else []
    if wanting and task.group is None:
        raise ConfigError(
            f"metric {wanting[0]!r} is of questions with candidates", where=where, fix="name their column: group = ..."
        )
    if "choice_f1" in task.metrics and task.form != "record":
        raise ConfigError("metric 'choice_f1' is of ReCoRD's form alone", where=where, fix="use choice")
    if task.group is not None and (task.kind != "classification" or (task.labels is not None and len(task.labels) != 2)):
        raise ConfigError("candidates of a question are right or wrong: two labels", where=where, fix="leave group out")


def _check_source(source: str, where: str) -> None:
    kind, _, rest = source.partition(":")
    if kind not in ("hub", "file", "folder", "asset") or not rest:
        raise ConfigError(
            f"source {source!r} is not understood" if source else "neither source nor preset is given",
            where=where,
            fix="write hub:REPO[:CONFIG], file:PATH, folder:PATH or asset:NAME, or give a preset",
        )
    suffix = PurePath(rest).suffix
    if kind == "file" and suffix not in FILE_SUFFIXES:
        fix = did_you_mean(suffix, FILE_SUFFIXES)
        raise ConfigError(f"files ending in {suffix!r} cannot be read", where=f"{where}: {source}", fix=fix)


class PartitionConfig(_Config):
    """How the training rows are spread over the clients."""

    how: How = "dirichlet-task"
    clients: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of the Dirichlet rules: small is uneven."""
    min_share: float = Field(default=0.01, ge=0, lt=1)
    """``dirichlet-task``: a smaller share of a task becomes none."""
    column: str | None = None
    """``column``: rows with the same value belong to one client."""
    shards_per_client: int = Field(default=2, ge=1)
    file: str | None = None
    """``file``: a partition saved before."""
    slots_per_task: int = Field(default=1, ge=1)
    """Places in which a client keeps the examples of one task, for methods with an adapter per task: each has its own."""
    seed: int | None = Field(default=None, ge=0)
    """Of the partition alone; the run's seed when not given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for how, value in (("column", self.column), ("file", self.file)):
            if self.how == how and not value:
                raise ConfigError(f"partition.how = {how!r} needs partition.{how}", where="partition")
        return self
