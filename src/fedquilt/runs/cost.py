"""What a client trains and sends, from a model's sizes alone: no weights, no partition, and no data where the labels are declared.

The same builders as in a run make the adapter on a model without weights, so the numbers are those of the run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedquilt.data import assets
from fedquilt.data.files import default_cache
from fedquilt.data.load import load
from fedquilt.data.spec import TaskConfig
from fedquilt.errors import CompositionError, ConfigError
from fedquilt.meter import fingerprint_size
from fedquilt.method import ClientPlan, compose
from fedquilt.models.fingerprint import numbers
from fedquilt.models.meta import Shape, Use, find_shape, meta_base
from fedquilt.runs.accounting import PaperCount, as_in_paper
from fedquilt.runs.config import RunConfig, parse
from fedquilt.runs.parts import check, make_adapter, make_method
from fedquilt.runs.plan import mean, summed, traffic
from fedquilt.types import Round, Spec

SHARED_KEYS = ("targets", "alpha", "dropout", "head")  # of [adapter]: what the compared methods take from the configuration
TRAINING = {"lr": 1e-3, "steps": 1}  # builders ask for them; they change no size

# Model, use, classes of each task: five tasks of GLUE, CIFAR-10 and CIFAR-100, the eight categories of Dolly.
PAPER: tuple[tuple[str, Use, tuple[int, ...]], ...] = (
    ("bert-base-cased", "text", (2,) * 5),
    ("google/vit-base-patch16-224-in21k", "image", (10, 100)),
    ("huggyllama/llama-7b", "generation", (2,) * 8),  # a next token needs no classes
)


@dataclass(frozen=True)
class Line:
    """One method, for a client that holds all tasks.

    Attributes:
        adapters: how many the client holds: one per task, or one.
        adapter, head: parameters that train, of all its adapters together; the mean over the rounds.
        paper: the total as the FL-TAC paper counts; None for methods that are not in it.
        up, down: bytes per round, headers included, if the client takes part in every round; means over the rounds.
    """

    method: str
    rank: int
    adapters: int
    adapter: int
    head: int
    paper: PaperCount | None
    up: int
    down: int

    @property
    def total(self) -> int:
        """Adapters and heads."""
        return self.adapter + self.head


@dataclass(frozen=True)
class Cost:
    """All methods on one model."""

    shape: Shape
    use: Use
    tasks: int
    classes: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def cost(config: RunConfig, *, fltac_rank: int = 1, fedit_rank: int = 16, use: Use | None = None) -> Cost:
    """Count the configured method beside FL-TAC, FedIT and full fine-tuning; the configured method keeps its own rank.

    Args:
        use: of the base model; by the kinds of the tasks when not given.

    Raises:
        ConfigError: an unknown method, adapter or option.
        ModelError: no sizes of the model, or no head of the tasks' kind.
        DataError: the labels of a task are neither declared nor readable.
    """
    check(config)
    if not config.tasks:
        raise ConfigError("there is no task to count", where="tasks", fix="add [[tasks]] as a client has them, with their labels")
    use, shape = use or _use(config.tasks), find_shape(config.model)
    classes = 0 if use == "generation" else max(map(_classes, config.tasks))
    lines, notes = [], []
    for name, one in _variants(config, fltac_rank, fedit_rank).items():
        try:
            line, note = _line(name, one, shape, use, classes)
            lines.append(line)
            notes += note
        except CompositionError as error:
            notes.append(f"{name} is not counted: {error.what}")
    return Cost(shape, use, len(config.tasks), classes, tuple(lines), tuple(dict.fromkeys(notes)))


def paper_costs() -> list[Cost]:
    """The three settings of the FL-TAC paper (section 4.1): FL-TAC of rank 1, FedIT of rank 16, the full model."""
    found = []
    for model, use, classes in PAPER:
        tasks = [
            {"name": f"task-{i}", "source": "file:none.csv", "labels": [str(label) for label in range(n)]}
            for i, n in enumerate(classes)
        ]
        raw = {"rounds": 1, "model": {"name": model}, "method": {"name": "fltac", **TRAINING}, "tasks": tasks}
        found.append(cost(parse(raw, Path()), use=use))
    return found


def _use(tasks: Sequence[TaskConfig]) -> Use:
    if any(task.kind == "generation" for task in tasks):
        return "generation"
    return "image" if any(task.image is not None for task in tasks) else "text"


def _classes(task: TaskConfig) -> int:
    """Outputs that the task needs; reads its rows only where nothing else says so."""
    if task.kind == "regression":
        return 1
    kind, _, name = task.source.partition(":")
    labels = task.labels or (assets.find(name).labels if kind == "asset" else None)
    return len(labels or load(task, root=Path(), cache=default_cache(), seed=0).labels)


def _variants(config: RunConfig, fltac_rank: int, fedit_rank: int) -> dict[str, RunConfig]:
    """Name of its line -> configuration: the given one in its place among the compared, or before them."""
    shared = {key: value for key, value in config.adapter.items() if key in SHARED_KEYS}
    head = {key: value for key, value in shared.items() if key == "head"}
    compared = {
        "fltac": _other(config, "fltac", "lora", {**shared, "rank": fltac_rank}),
        "fedit": _other(config, "fedit", "lora", {**shared, "rank": fedit_rank}),
        "full": _other(config, "fedit", "full", head),  # FedAvg of the whole model
    }
    family, name = config.adapter.get("family", config.method.get("adapter", "lora")), str(config.method["name"])
    own = name if family == "lora" or name not in compared else "full" if family == "full" else f"{name} ({family})"
    return compared | {own: config} if own in compared else {own: config, **compared}


def _other(config: RunConfig, method: str, family: str, adapter: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"method": {"name": method, "adapter": family, **TRAINING}, "adapter": adapter})


def _line(name: str, config: RunConfig, shape: Shape, use: Use, classes: int) -> tuple[Line, list[str]]:
    tasks = len(config.tasks)
    method = make_method(config, tasks)
    base = meta_base(shape, config.model, use, classes)
    spec = make_adapter(config, method, base, tasks).spec
    client = compose(method, spec).client
    trained = [set(client.train(Round(number, config.seed))) for number in range(1, config.rounds + 1)]
    heads, rest = (_sizes(spec, trained, head=head) for head in (True, False))
    held = {"task": tasks * config.partition.slots_per_task, "pooled-task": tasks}.get(method.slots, 1)
    counted = name == "full" or spec.family == "lora"
    roles = tuple(config.adapter.get("targets", ("q", "v")))
    up, down, notes = _bytes(name, config, client, spec, held, numbers(client.fingerprint, base, spec))
    line = Line(
        name,
        spec.rank,
        adapters=held,
        adapter=mean([held * size for size in rest]),
        head=mean([held * size for size in heads]),
        paper=as_in_paper(name, shape, use, tasks=tasks, classes=classes, rank=spec.rank, roles=roles) if counted else None,
        up=up,
        down=down,
    )
    if len(set(rest)) > 1:
        most = f"{held * min(rest):,} to {held * max(rest):,} parameters of the adapter"
        notes.insert(0, f"{name} trains other leaves in other rounds, {most}; shown are means over {config.rounds} rounds")
    return line, notes


def _bytes(name: str, config: RunConfig, client: ClientPlan, spec: Spec, held: int, look: int) -> tuple[int, int, list[str]]:
    """Up and down per round of a client with so many slots, and what is not in it; ``look``: numbers of a fingerprint."""
    up, down = (mean([held * size for size in way]) for way in zip(*traffic(spec, client, config.rounds, config.seed), strict=True))
    if client.summed:
        clients = config.partition.clients
        vector, more, notes = summed(config, spec, client, clients, look)
        said = f"secure aggregation: bytes are those of a sum over {clients} clients"
        return vector, more + (0 if client.choose else down), [said, *notes]
    once = f"{name} sends a fingerprint of every slot's data once: {held * fingerprint_size(look):,} bytes more in the first round"
    return up, down, [once] if look else []


def _sizes(spec: Spec, trained: Sequence[Collection[str]], *, head: bool) -> list[int]:
    """Round by round the parameters that train, of heads or of the rest."""
    return [sum(leaf.size for leaf in spec.leaves if leaf.name in names and (leaf.role == "head") == head) for names in trained]
