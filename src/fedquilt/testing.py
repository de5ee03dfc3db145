"""For authors of methods: ``check_method`` puts a method through what every built-in method has to pass.

    from fedquilt.testing import check_method

    def test_my_method() -> None:
        check_method("my_method", lr=1e-2, steps=2)

It needs no network and no data: a random BERT of a few thousand parameters and three synthetic tasks. With
``tables={"model": {"name": "tiny:vit", "precision": "float64"}}`` it is a random vision transformer and images of noise; with
``kind="generation"`` a random Llama and three tasks of prompts and responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.clock import Books, Drive
from fedquilt.data.encode import Examples, Task
from fedquilt.data.images import ImageExamples
from fedquilt.data.kinds import Kind
from fedquilt.data.partition import Partition
from fedquilt.data.transform import Transform
from fedquilt.engine.kept import InMemory, flat
from fedquilt.errors import CompositionError
from fedquilt.meter import Meter
from fedquilt.models.loading import Base, load
from fedquilt.rng import numpy_generator
from fedquilt.runs.build import Built, assemble
from fedquilt.runs.config import RunConfig, parse
from fedquilt.runs.launch import refuse_method
from fedquilt.types import Hub

SIZES: Mapping[str, Sequence[int]] = {"colour": (9, 4, 0, 7), "amount": (5, 0, 1, 8), "shape": (6, 3, 10, 0)}
CLASSES: Mapping[str, int] = {"colour": 2, "amount": 3, "shape": 2}


def tiny_tasks(seed: int = 0, kind: Kind = "classification", transform: Transform | None = None) -> dict[str, Task]:
    """Three tasks (2, 3 and 2 labels) of random words of the tiny models, or of noise images; one client holds one sample."""
    return {name: _task(name, sum(sizes), seed, kind, transform) for name, sizes in SIZES.items()}


def _task(name: str, rows: int, seed: int, kind: Kind, transform: Transform | None) -> Task:
    classes = 0 if kind == "generation" else CLASSES[name]

    def part(n: int, which: str) -> Examples | ImageExamples:
        salt = (seed, name, which)
        if transform is not None:
            return _images(n, classes, transform, *salt)
        examples = _examples(n, max(classes, 1), *salt)
        return _answered(examples) if kind == "generation" else examples

    metrics = ("loss", "perplexity") if kind == "generation" else ("accuracy",)
    return Task(name, kind, tuple(map(str, range(classes))), metrics, part(rows, "train"), part(12, "evaluation"))


def _answered(examples: Examples) -> Examples:
    """The second half of every text is its response."""
    types = [np.arange(length) >= length // 2 for length in examples.lengths]
    return replace(examples, types=np.concatenate(types).astype(np.uint8))


def _examples(rows: int, classes: int, seed: int, *salt: str) -> Examples:
    stream = numpy_generator(seed, *salt)
    lengths = stream.integers(3, 14, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = stream.integers(5, 60, offsets[-1]).astype(np.int32)
    return Examples(tokens, np.zeros(len(tokens), np.uint8), offsets, stream.integers(0, classes, rows).astype(np.float64))


def _images(rows: int, classes: int, transform: Transform, seed: int, *salt: str) -> ImageExamples:
    stream = numpy_generator(seed, *salt)
    pixels = stream.integers(0, 256, (rows, transform.size, transform.size, 3)).astype(np.uint8)
    return ImageExamples(pixels, stream.integers(0, classes, rows).astype(np.float64), transform.tokens)


def tiny_partition() -> Partition:
    """Four clients; each lacks a task or has all."""
    parts = {}
    for name, sizes in SIZES.items():
        ends = np.cumsum(sizes)
        parts[name] = tuple(np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True))
    return Partition(parts, "file")


def tiny_config(name: str, kind: Kind = "classification", **tables: Any) -> RunConfig:
    """A run of two rounds in float64 on one thread; ``tables`` are those of a config file."""
    tasks = [{"name": task, "source": "file:unused.csv", "kind": kind} for task in SIZES]
    model = {"name": "tiny:llama" if kind == "generation" else "tiny:bert", "precision": "float64"}
    raw: dict[str, Any] = {"rounds": 2, "threads": 1, "tasks": tasks, "model": model}
    method = {"name": name, **tables.pop("method", {})}
    return parse({**raw, **tables, "method": method}, root=Path())


def tiny_base(config: RunConfig) -> Base:
    """The random base model of a tiny run."""
    torch.set_num_threads(1)
    classes = 0 if config.tasks[0].kind == "generation" else max(CLASSES.values())
    return load(config.model, classes=classes, seed=config.seed)


@dataclass(frozen=True)
class Outcome:
    """What a tiny run ended with."""

    hub: Hub
    memory: Mapping[str, Tensor]
    rounds: list[dict[str, Any]]
    built: Built
    hubs: Sequence[Hub]  # the state at the start and after every round

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training determined."""
        return {**{f"bank/{k}": x for k, x in self.hub.bank.items()}, **{f"memory/{k}": x for k, x in self.memory.items()}}


class Nowhere:
    """A journal that keeps its records in memory."""

    def __init__(self) -> None:
        self.records: dict[str, list[Mapping[str, Any]]] = {}
        self.hubs: list[Hub] = []

    def commit(self, hub: Hub, records: Mapping[str, Sequence[Mapping[str, Any]]], books: Books) -> None:
        """Remember."""
        self.hubs.append(hub)
        for name, lines in records.items():
            self.records.setdefault(name, []).extend(lines)


def build_tiny(config: RunConfig, base: Base | None = None) -> Built:
    """The objects of a tiny configuration, over those of the three tasks that it names."""
    base = base or tiny_base(config)
    made, parts = tiny_tasks(config.seed, config.tasks[0].kind, base.transform), tiny_partition().parts
    names = [task.name for task in config.tasks]
    return assemble(config, base, {name: made[name] for name in names}, Partition({name: parts[name] for name in names}, "file"))


def run_tiny(config: RunConfig, base: Base | None = None, *, rounds: int | None = None) -> Outcome:
    """Run a tiny configuration in memory, up to ``rounds`` (None: to its end): no files, no evaluation."""
    built = build_tiny(config, base)
    journal = Nowhere()
    drive = Drive(
        built.program,
        built.engine,
        built.adapter.spec,
        journal,
        Meter(built.adapter.spec),
        config.seed,
        rounds or config.rounds,
        observe=lambda number, updates, hub: {},
        evaluate=lambda hub, number: None,
        notice=lambda number, summary, evaluation: None,
        fingerprint=built.fingerprint,
    )
    hub = drive.run(built.program.init(built.adapter.init))
    kept = cast(InMemory, built.engine.kept).tensors()
    return Outcome(hub, kept, [dict(line) for line in journal.records.get("rounds.jsonl", [])], built, journal.hubs)


AGREE, NOISE = 1e-10, 1e-9


def agree(one: Outcome, other: Outcome) -> bool:
    """Whether two float64 runs ended with the same numbers to 1e-10; numbers below 1e-9 in both count as equal.

    Some gradients are exactly zero in theory (a bias of attention's keys moves all scores of a query alike). Rounding makes them
    1e-17, and AdamW, which divides by their size, a parameter of 1e-10: the two engines' noise need not be the same.
    """
    a, b = one.tensors(), other.tensors()
    loud = {key: (a[key].abs() > NOISE) | (b[key].abs() > NOISE) for key in a}
    return tree.max_difference(*({key: x[key].double() * loud[key] for key in x} for x in (a, b))) <= AGREE


def check_method(name: str, *, kind: Kind = "classification", tables: Mapping[str, Any] | None = None, **options: Any) -> list[str]:
    """Run a registered method on both engines and check what every method owes; returns the names of the passed checks.

    Checks: it composes; both engines agree to 1e-10 in float64; a second run gives the same bits; nothing but finite numbers;
    the base model did not change; what travels is trained; the state survives a round trip through a file.

    Args:
        kind: of the tasks.
        tables: of the configuration besides ``[method]``, such as ``{"adapter": {"dropout": 0.1}}``.
        options: of the method.

    Raises:
        CompositionError: naming the first check that failed.
        ConfigError: unknown method or options, or a method in the place of its name.
    """
    refuse_method(name, "fedquilt.testing.check_method")
    config = tiny_config(name, kind, **{**(tables or {}), "method": options})
    base = tiny_base(config)
    before = base.fingerprint
    fast, again = run_tiny(config, base), run_tiny(config, base)
    slow = run_tiny(config.model_copy(update={"engine": "sequential"}), base)
    base._fingerprint = ""
    checks = {
        "both engines agree": agree(fast, slow) and fast.hub.table == slow.hub.table,
        "the same seed gives the same bits": tree.equal(fast.tensors(), again.tensors()) and fast.rounds == again.rounds,
        "all numbers are finite": all(bool(torch.isfinite(x).all()) for x in fast.tensors().values()),
        "the base model is unchanged": base.fingerprint == before,
        "what travels is trained": _travels_trained(fast.built),
        "rounds were accepted": all(not entry["rejected"] for entry in fast.rounds),
        "the state survives a file": _round_trip(fast),
    }
    for check, passed in checks.items():
        if not passed:
            raise CompositionError(f"method '{name}' failed the check: {check}", where="fedquilt.testing.check_method")
    return list(checks)


def _travels_trained(built: Built) -> bool:
    from fedquilt.types import Round

    client = built.program.client
    return all(set(client.share(Round(n, 0))) <= set(client.train(Round(n, 0))) for n in (1, 2, 3))


def _round_trip(outcome: Outcome) -> bool:
    import tempfile

    from fedquilt.runs.store import Store

    kept = cast(InMemory, outcome.built.engine.kept).slots
    with tempfile.TemporaryDirectory() as folder:
        store, again = Store(Path(folder)), Store(Path(folder))
        for slot, states in kept.items():
            store.clients.put(slot, states)
        store.commit(outcome.hub, {}, {})
        loaded = again.load()
        memory = {key: x for slot in kept for key, x in flat(slot, again.clients.get(slot)).items()}
    if loaded is None:
        return False
    hub = loaded[0]
    return tree.equal(hub.bank, outcome.hub.bank) and tree.equal(memory, outcome.memory) and hub.table == outcome.hub.table
