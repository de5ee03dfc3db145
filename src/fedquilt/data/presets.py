"""Published tasks: their columns, labels, splits and metrics as on the hub."""

from __future__ import annotations

from dataclasses import dataclass

from fedquilt.data.kinds import Kind, Metric


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
