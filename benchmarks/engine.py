"""The engine alone: many clients against few, other families against LoRA, evaluation against the plain loop's.

    python benchmarks/engine.py [clients families evaluation lanes workers] [--laps 5] [--threads 1] [--data FOLDER]

All on all-MiniLM-L6-v2 and the five GLUE tasks of the FL-TAC paper, cut at 128 tokens; what is compared alternates lap by lap.

- clients: whole rounds of FedIT (plan, training, gate, aggregation; no evaluation) of 10, 100 and 1,000 clients (less the few that
  no row is drawn for) with the same rows between them, once each; the same with a model that computes nothing, so that what is
  left is the price of a client and of its steps; and without any training, the price of a client alone.
- families: a step of five slots of 32 rows for every adapter family.
- evaluation: five adapters on their tasks' evaluation rows: ours, and peft's model padded to 128 tokens, adapter by adapter.
- lanes: 128 clients of one row each: the vectorised engine, the same engine one slot at a time, and peft's model; and the first
  two once more with the base's maps in bfloat16.
- workers: rounds of ten clients by one thread, two threads, and two worker processes of a thread each.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from grid import row as line
from laps import laps_of
from speed import CONFIGS, NEAR, NEAR_HALF, Loop, wide, works
from torch import Tensor

from fedquilt import tree
from fedquilt.clock import Drive
from fedquilt.data.encode import Task
from fedquilt.engine.base import InProcess, Trained, Work, starts
from fedquilt.engine.batches import assemble as batch
from fedquilt.meter import Meter
from fedquilt.models.loading import load
from fedquilt.models.padded import pad, parameter_name, with_lora
from fedquilt.runs import registry
from fedquilt.runs.build import Built, assemble, build, load_tasks, make_partition
from fedquilt.runs.config import RunConfig, load_config
from fedquilt.types import Batch, Hub, Stack

CLIENTS = (10, 100, 1000)
OPTIONS = {
    "lora": ("adapter.rank=1",),
    "tt": ("adapter.rank=5", "adapter.bottleneck=64"),
    "bottleneck": ("adapter.bottleneck=64",),
}
ALONE = ("full", "last_layers")  # weights of the base itself: one adapter a pass, nothing to share
TOKENS, ROWS = 128, 32


def config(rows: int, answers: int, *sets: str) -> RunConfig:
    """FedIT on the five tasks, ``rows`` and ``answers`` of each to train and evaluate on, without dropout, in float32."""
    fixed = [f"tasks.{i}.{key}={value}" for i in range(5) for key, value in (("max_train", rows), ("max_eval", answers))]
    fixed += ["name=engine", "rounds=1", "model.dropout=0", f"model.max_length={TOKENS}", "model.precision=float32"]
    fixed += ["method.name=fedit", "method.lr=2e-3", "method.epochs=1", f"method.batch={ROWS}"]
    return load_config(CONFIGS / "glue" / "tasks.toml", [*fixed, *sets])


class Nothing:
    """A journal that keeps nothing, and a model that computes nothing."""

    device = torch.device("cpu")

    def commit(self, *_: Any) -> None:
        """Forget."""

    def losses(self, stack: Stack, batch: Batch) -> Tensor:
        """Zeros ``[G]`` that depend on every leaf."""
        return torch.stack([x.flatten(1).sum(1) * 0 for x in stack.values()]).sum(0)


def whole_round(built: Built) -> Hub:
    """One round from the start, without evaluation."""
    drive = Drive(
        program=built.program,
        engine=built.engine,
        spec=built.adapter.spec,
        journal=Nothing(),
        meter=Meter(built.adapter.spec),
        seed=0,
        rounds=1,
        observe=lambda *_: {},
        evaluate=lambda *_: None,
        notice=lambda *_: None,
    )
    return drive.run(built.program.init(built.adapter.init))


def untrained(built: Built) -> None:
    """From now on nothing is trained: what is left of a round is what a client costs beside its training."""
    engine = built.engine

    def train(works: Sequence[Work]) -> list[Trained]:
        x, _ = starts(works, engine.client.train(works[0].job.round))
        stayed = tree.unstack(tree.map_leaves(torch.zeros_like, x))
        return [Trained(after, delta, {}, 0.0) for after, delta in zip(tree.unstack(x), stayed, strict=True)]

    engine.train = train  # type: ignore[method-assign]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Markdown."""
    for cells in (head, ["---"] * len(head), *rows):
        print(line(cells), flush=True)


def middle(laps: Sequence[float], per: float) -> list[str]:
    """Median, fastest and slowest in milliseconds."""
    found = [1000 * x / per for x in (statistics.median(laps), min(laps), max(laps))]
    return [f"{found[0]:.3f}", f"{found[1]:.3f}, {found[2]:.3f}"]


def clients(laps: int) -> None:
    """Rounds of many and few clients."""
    made: dict[int, Built] = {}
    for number in CLIENTS:
        chosen = config(400, 20, "adapter.rank=1", "partition.how=iid", f"partition.clients={number}")
        if not made:
            first = made[number] = build(chosen)
        else:
            made[number] = assemble(chosen, first.base, first.tasks, make_partition(chosen, load_tasks(chosen)))
    samples = sum(len(task.train) for task in first.tasks.values())
    ways: dict[int, Callable[[], object]] = {number: partial(whole_round, built) for number, built in made.items()}
    found = laps_of(ways, laps)
    for built in made.values():
        built.engine.network = Nothing()  # type: ignore[assignment]
    empty = laps_of(ways, laps)
    for built in made.values():
        untrained(built)
    bare = laps_of(ways, laps)
    rows = []
    for number, built in made.items():
        ratio = statistics.median(found[number]) / statistics.median(found[CLIENTS[0]])
        prices = [middle(way[number], len(built.view.slots))[0] for way in (empty, bare)]
        rows.append([f"{len(built.view.slots):,}", *middle(found[number], samples), f"{ratio:.2f}", *prices])
    head = ["clients", "ms per sample", "fastest, slowest", "of ten clients'", "ms per client, nothing computed", "not trained"]
    table(head, rows)


def families(laps: int) -> None:
    """A step of every family on the same rows."""
    first, made = build(config(400, 20, "adapter.rank=1")), {}
    for name in registry.names("fedquilt.adapters"):
        if name not in ALONE:
            chosen = config(400, 20, f"adapter.family={name}", *OPTIONS.get(name, ()))
            made[name] = assemble(chosen, first.base, first.tasks, first.partition)
    given = {name: works(built, 5, ROWS, 1, 0) for name, built in made.items()}
    found = laps_of({name: partial(built.engine.train, given[name]) for name, built in made.items()}, laps)
    least = statistics.median(found["lora"])
    rows = [
        [name, f"{made[name].adapter.spec.size():,}", *middle(spent, 5 * ROWS), f"{statistics.median(spent) / least:.2f}"]
        for name, spent in sorted(found.items(), key=lambda item: statistics.median(item[1]))
    ]
    table(["family", "numbers", "ms per sample", "fastest, slowest", "of LoRA's"], rows)


@dataclass
class Plain:
    """peft's model in evaluation, padded to :data:`TOKENS`."""

    built: Built

    def __post_init__(self) -> None:
        model = copy.deepcopy(self.built.base.model)
        model.set_attn_implementation("sdpa")
        self.model: Any = with_lora(model, self.built.base, self.built.adapter).eval()

    @torch.no_grad()
    def __call__(self, stack: Stack, given: Mapping[str, list[Batch]]) -> list[Tensor]:
        """Logits of every adapter's rows."""
        out = []
        for number, batches in enumerate(given.values()):
            for leaf in self.built.adapter.spec.leaves:
                name = parameter_name(leaf.name, leaf.role, self.built.base, True)
                self.model.get_parameter(name).copy_(stack[leaf.name][number])
            for rows in batches:
                ids, types, mask = wide(*pad(rows, 0), TOKENS)
                out.append(self.model(input_ids=ids, token_type_ids=types, attention_mask=mask.long()).logits)
        return out


def evaluation(laps: int) -> None:
    """Five adapters on their own rows."""
    built = build(config(32, 256, "adapter.rank=1", "partition.clients=1"))
    stream, plain, names = torch.Generator().manual_seed(0), Plain(built), list(built.tasks)
    stack = tree.stack(
        [{k: x + 0.02 * torch.randn(x.shape, generator=stream) for k, x in built.adapter.init.items()} for _ in names]
    )
    theirs = {name: in_file_order(built.tasks[name]) for name in names}

    def ours() -> list[Tensor]:
        rows = [tree.rows(stack, [i]) for i in range(len(names))]
        return [
            built.network.logits(row, batch) for row, name in zip(rows, names, strict=True) for batch in built.evaluator.split(name)
        ]

    agree("mean logit", mean(ours()), mean(plain(stack, theirs)))
    found = laps_of({"padded to 128, one after the other": lambda: plain(stack, theirs), "fedquilt": ours}, laps)
    samples = sum(len(task.evaluation) for task in built.tasks.values())
    slowest = statistics.median(next(iter(found.values())))
    rows = [[name, *middle(spent, samples), f"{slowest / statistics.median(spent):.2f}"] for name, spent in found.items()]
    table(["way", "ms per sample", "fastest, slowest", "first over it"], rows)


def in_file_order(task: Task) -> list[Batch]:
    """A task's evaluation rows, :data:`ROWS` at a time."""
    chosen = [(task, 0, i) for i in range(len(task.evaluation))]
    return [batch(chosen[i : i + ROWS], 0, split="evaluation") for i in range(0, len(chosen), ROWS)]


def mean(logits: list[Tensor]) -> list[float]:
    """Of all numbers: the two ways have other orders of rows."""
    return [float(torch.cat(logits).double().mean())]


def lanes(laps: int) -> None:
    """Many clients of one row."""
    built = build(config(400, 20, "adapter.rank=1"))
    chosen = config(400, 20, "adapter.rank=1", "model.precision=bfloat16")
    base = load(chosen.model, classes=max(task.classes for task in built.tasks.values()), seed=chosen.seed)
    half = assemble(chosen, base, built.tasks, built.partition)
    given, loop = works(built, 128, 1, 1, 0), Loop(built, None)

    def alone(engine: InProcess) -> list[float]:
        return [engine.train([work])[0].loss for work in given]

    def together(engine: InProcess) -> list[float]:
        return [done.loss for done in engine.train(given)]

    ways: dict[str, Callable[[], list[float]]] = {
        "peft, one client at a time": lambda: loop.slots(given),
        "fedquilt, one client at a time": lambda: alone(built.engine),
        "fedquilt": lambda: together(built.engine),
        "fedquilt, bfloat16, one client at a time": lambda: alone(half.engine),
        "fedquilt, bfloat16": lambda: together(half.engine),
    }
    ours = {name: "fedquilt, bfloat16" if "bfloat16" in name else "fedquilt" for name in ways}
    for name, way in ways.items():
        agree("loss", ways[ours[name]](), way(), NEAR_HALF if "bfloat16" in name else NEAR)
    found = laps_of(ways, laps)
    best = {name: statistics.median(found[ours[name]]) for name in ways}
    rows = [[name, *middle(spent, len(given)), f"{statistics.median(spent) / best[name]:.2f}"] for name, spent in found.items()]
    table(["way", "ms per client", "fastest, slowest", "over fedquilt's in its precision"], rows)


def workers(laps: int) -> None:
    """Two cores for ten clients: threads of one process, or processes."""
    same = ("adapter.rank=1", "partition.how=iid", "partition.clients=10")
    cores = {"one thread": ("threads=1",), "two threads": ("threads=2",), "two workers": ("threads=2", "workers=2")}
    made = {name: build(config(100, 20, *same, *sets)) for name, sets in cores.items()}
    threads = {name: 2 if name == "two threads" else 1 for name in made}

    def on(name: str) -> Hub:
        torch.set_num_threads(threads[name])
        return whole_round(made[name])

    try:
        ways = {name: partial(on, name) for name in made}
        banks = [ways[name]().bank for name in ways]
        for bank in banks[1:]:
            agree("adapters", [tree.max_difference(bank, banks[0])], [0.0])
        found = laps_of(ways, laps)
    finally:
        made["two workers"].engine.close()
    samples = sum(len(task.train) for task in made["one thread"].tasks.values())
    slowest = statistics.median(found["one thread"])
    rows = [[name, *middle(spent, samples), f"{slowest / statistics.median(spent):.2f}"] for name, spent in found.items()]
    table(["way", "ms per sample", "fastest, slowest", "one thread over it"], rows)


def agree(what: str, found: Sequence[float], expected: Sequence[float], near: float = NEAR) -> None:
    """Raises:
    ValueError: two ways that are compared have not computed the same.
    """
    apart = float((torch.tensor(found) - torch.tensor(expected)).abs().max())
    if not apart <= near:
        raise ValueError(f"{what}: {apart} apart")


PARTS = {"clients": clients, "families": families, "evaluation": evaluation, "lanes": lanes, "workers": workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS], metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", default=os.environ.get("FEDQUILT_DATA", str(Path(__file__).parents[2] / "shared" / "data")))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(PARTS)}")
    os.environ |= {"FEDQUILT_DATA": arguments.data, "OMP_NUM_THREADS": str(arguments.threads)}
    for part in arguments.parts:
        print(f"\n{part}, {arguments.threads} threads\n", flush=True)
        PARTS[part](arguments.laps)


if __name__ == "__main__":
    main()
