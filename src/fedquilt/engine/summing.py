"""Clients of one process that add up among themselves: with nobody to hide from, the sums of a deployment without its masks.

Also what a client knows of where its slots belong, here and on a machine of its own (:mod:`fedquilt.assign.chosen`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.chosen import AXES, CENTRES, MEAN, SCALE, Question, chosen
from fedquilt.errors import QuorumError
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.sums import Total, decoded, encoded, summed, traffic
from fedquilt.types import Failure, Hub, Job, Reply, Round, Slot, State
from fedquilt.wire import message

if TYPE_CHECKING:
    from fedquilt.engine.base import InProcess


def total(engine: InProcess, jobs: Sequence[Job], hub: Hub) -> Total:
    """A round: clients choose rows, if the method lets them, train, and add up."""
    slots, now = [job.slot for job in jobs], jobs[0].round
    sent: Counter[int] = Counter()
    came: Counter[int] = Counter()
    failures: list[Failure] = []

    def add(vectors: Mapping[int, Words], asked: int, told: int) -> Words:
        """The sum; every client was sent ``told`` bytes beside what the protocol takes."""
        found = summed(vectors, asked)
        down, up = traffic(len(vectors), len(found))
        sent.update(dict.fromkeys(vectors, down + told))
        came.update(dict.fromkeys(vectors, up))
        return found

    def ask(question: Question) -> Tensor:
        clients = sorted(engine.roster(now.number))
        said = {client: answer(engine, client, question, now, tree.row(hub.bank, 0)) for client in clients}
        return decoded(add({c: encoded(x, len(clients)) for c, x in said.items()}, len(clients), question.size))

    try:
        memory, told = {}, 0
        if engine.client.choose:
            memory = engine.client.choose.settle(hub.memory, present(engine, now.number), now, ask)
            hub = replace(hub, memory={**hub.memory, **memory})
            rows = table(engine, hub, now.number)
            jobs = [replace(job, row=rows[job.slot]) for job in jobs]
            told = offered(engine.client.choose, hub, engine.client.common(engine.spec, now), engine)
        parts: dict[int, list[tuple[int, Reply]]] = {job.slot.client: [] for job in jobs}
        row_of = {job.slot: job.row for job in jobs}
        for reply in engine.poll(engine.submit(jobs, hub.bank)):
            parts[reply.slot.client].append((row_of[reply.slot], reply))
        layout, vectors = engine.client.layout(engine.spec.leaves, now), {}
        for client, replies in parts.items():
            try:
                vectors[client] = layout.words(replies, len(parts))
            except ValueError as error:
                failures += [Failure(reply.slot, "refused", str(error)) for _, reply in replies]
        found = add(vectors, len(parts), told)
    except QuorumError as error:
        gone = {failure.slot for failure in failures}
        failures += [Failure(slot, "lost", error.what) for slot in slots if slot not in gone]
        return Total(None, (), tuple(failures), sent, came)
    there = tuple(slot for slot in slots if slot.client in vectors)
    return Total(layout.read(found), there, tuple(failures), sent, came, memory)


def offered(how: chosen, hub: Hub, leaves: Sequence[str], engine: InProcess) -> int:
    """Bytes of what a client is sent to choose from: every row, and the centres."""
    size = message.size([leaf for leaf in engine.spec.leaves if leaf.name in set(leaves)])
    return how.k * size + places(hub.memory).size


def places(memory: Mapping[str, Tensor]) -> Question:
    """What a client needs to find its rows."""
    return Question(memory[MEAN], memory[SCALE], memory[AXES], memory[CENTRES][None])


def present(engine: InProcess, number: int) -> list[Slot]:
    """All slots that are there in a round."""
    return [Slot(client, n) for client, count in sorted(engine.roster(number).items()) for n in range(count)]


def table(engine: InProcess, hub: Hub, number: int) -> dict[Slot, int]:
    """The rows that this engine's clients choose; empty before there is anything to choose."""
    if CENTRES not in hub.memory:
        return {}
    start, now = tree.row(hub.bank, 0), Round(max(1, number), engine.sampler.seed)
    every = [rows(engine, client, places(hub.memory), now, start) for client in sorted(engine.roster(now.number))]
    return {slot: row for found in every for slot, row in found.items()}


def rows(engine: InProcess, client: int, told: Question, now: Round, start: State) -> dict[Slot, int]:
    """A client's: its slots and their rows."""
    slots = [slot for slot in present(engine, now.number) if slot.client == client]
    if engine.client.choose is None or not slots:
        return {}
    found = engine.client.choose.choose(told, *_seen(engine, slots, now, start), now.seed)
    return dict(zip(slots, found, strict=True))


def answer(engine: InProcess, client: int, question: Question, now: Round, start: State) -> Tensor:
    """A client's: what it adds to a question; ``start``: what newcomers start from."""
    slots = [slot for slot in present(engine, now.number) if slot.client == client]
    if engine.client.choose is None:
        raise ValueError("nobody chooses rows under this method")
    return engine.client.choose.answer(question, *_seen(engine, slots, now, start), now.seed)


def _seen(engine: InProcess, slots: Sequence[Slot], now: Round, start: State) -> tuple[Tensor, list[int]]:
    """Looks ``[s, d]`` of slots, each of which is looked at once, and how many examples they have."""
    engine.see([slot for slot in slots if slot not in engine.seen_of], now, start)
    samples = [engine.view.data(slot, now.number).samples for slot in slots]
    return torch.stack([engine.seen_of[slot] for slot in slots]), samples
