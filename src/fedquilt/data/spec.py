"""What a user writes about data: one :class:`TaskConfig` per task and one :class:`PartitionConfig` per run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedquilt.data.forms import FORMS
from fedquilt.data.kinds import GROUPED, METRICS, Kind, Metric
from fedquilt.data.labels import key
from fedquilt.data.presets import PRESETS
from fedquilt.errors import ConfigError, did_you_mean

Prompt = Literal["chat", "alpaca"]
How = Literal["dirichlet-task", "dirichlet-label", "iid", "column", "shards", "file", "own"]
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl")
FILE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")


def _filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with the gaps filled by its preset; a local file without ``{split}`` has no evaluation split."""
    name = given["preset"]
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        where = f"task {given.get('name', '')!r}, preset"
        raise ConfigError(f"there is no preset {name!r}", where=where, fix=did_you_mean(str(name), PRESETS))
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
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits, '.', '_' and '-', and a letter or a digit at the beginning",
    ),
]
Filter = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_filter)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskConfig(_Config):
    """One task: where its rows are and which columns mean what. ``preset`` fills everything that is not given."""

    name: Name
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
    """Column of the question that a candidate belongs to: candidates are rows, ``labels`` are wrong and right in this order,
    questions are never parted, and the metrics ``choice`` and ``exact`` are of questions."""
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
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(_one_or_more)] = ()
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
            fix = "text = 'column', or two of them; to use more, join them into one column of the file"
            raise ConfigError(f"text needs one or two columns, not {len(self.text)}", where=where, fix=fix)
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            fix = "write every label once, or leave labels out: they are found in the training rows"
            raise ConfigError(f"labels holds a name twice: {', '.join(self.labels)}", where=where, fix=fix)
        if self.labels is not None and self.kind == "classification" and len(self.labels) < 2:
            fix = "name all labels, leave labels out, or write kind = 'regression' for numbers to be predicted"
            raise ConfigError("labels needs at least two names", where=where, fix=fix)
        if self.eval_where and self.eval_split is not None:
            fix = "give one of them"
            raise ConfigError("eval_where and eval_split both say which rows are for evaluation", where=where, fix=fix)
        if self.eval_split == self.train_split:
            fix = "leave eval_split out: eval_share of the rows is held out"
            raise ConfigError(f"{self.eval_split!r} is the training and the evaluation split", where=where, fix=fix)
        if self.form is not None and self.form not in FORMS:
            raise ConfigError(f"there is no form {self.form!r}", where=f"{where}, tasks.form", fix=did_you_mean(self.form, FORMS))
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
    if task.group is None:
        return
    if task.kind != "classification" or task.labels is None or len(task.labels) != 2:
        fix = "labels = ['no', 'yes'], in the words of the rows; or leave group out"
        raise ConfigError("candidates of a question are wrong or right: two labels, in this order", where=where, fix=fix)
    if task.labels[0].lower() in ("yes", "true", "right", "correct", "1"):
        raise ConfigError(f"the second label means right, but the first one is {task.labels[0]!r}", where=where, fix="swap them")


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
        what = f"files ending in {suffix!r} cannot be read" if suffix else "the file's name has no ending that says its format"
        raise ConfigError(what, where=f"{where}: {source}", fix=fix)


class PartitionConfig(_Config):
    """How the training rows are spread over the clients."""

    how: How = "dirichlet-task"
    """``own``: they are not; every client's machine has its own tasks and rows (``fedquilt client``), and the server has none."""
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
                example = {"column": 'partition.column = "user"', "file": 'partition.file = "partition.json"'}[how]
                fix = f"for example {example}, or choose another rule"
                raise ConfigError(f"partition.how = {how!r} needs partition.{how}", where=f"partition.{how}", fix=fix)
        return self
