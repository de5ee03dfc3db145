"""Clients of one process that add up among themselves: with nobody to hide from, the sums of a deployment without its masks.

Also what a client knows of where its slots belong, here and on a machine of its own (:mod:`fedquilt.assign.chosen`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.chosen import AXES, CENTRES, MEAN, SCALE, Question, chosen
from fedquilt.errors import QuorumError, StateError
from fedquilt.method import remembering
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.sums import Adding, Total, decoded, encoded, traffic
from fedquilt.types import Failure, Hub, Job, Reply, Round, Slot, State

if TYPE_CHECKING:
    from fedquilt.engine.base import InProcess


def total(engine: InProcess, jobs: Sequence[Job], hub: Hub) -> Total:
    """A round: clients choose rows, if the method lets them, train, and add up."""
    now, roster, memory = jobs[0].round, engine.roster(jobs[0].round.number), dict[str, Tensor]()
    books, start = _Books(), tree.row(hub.bank, 0)

    def ask(question: Question) -> Tensor:
        adding = Adding(len(roster) - len(books.lost))
        for client, many in sorted(roster.items()):
            if client not in books.lost:
                with books.falling(client):
                    adding.add(client, encoded(answer(engine, client, many, question, now, start), adding.asked))
        return decoded(books.total(adding, question.size))

    rows, told = {job.slot: job.row for job in jobs}, 0
    try:
        if engine.client.choose:
            engine.client.choose.settle(hub.memory, slots_of(roster), now, ask, memory)
            hub = remembering(hub, memory)
            for client in {job.slot.client for job in jobs} - books.lost.keys():
                with books.falling(client):
                    rows |= rows_of(engine, client, roster[client], places(hub.memory), now, start)
            told = engine.client.offer(engine.spec, now, engine.fingerprint.size if engine.fingerprint else 0)
        adding = _changes(
            engine, [replace(job, row=rows[job.slot]) for job in jobs if job.slot.client not in books.lost], hub, books
        )
        found = books.total(adding, told)
    except QuorumError as error:
        failures = tuple(Failure(job.slot, *books.why(job.slot.client, error.what)) for job in jobs)
        return Total(None, (), failures, books.sent, books.came, memory)
    failures = tuple(Failure(job.slot, *books.why(job.slot.client, "")) for job in jobs if job.slot.client not in adding.clients)
    there = tuple(job.slot for job in jobs if job.slot.client in adding.clients)
    return Total(engine.client.layout(engine.spec, now).read(found), there, failures, books.sent, books.came, memory)


def _changes(engine: InProcess, jobs: Sequence[Job], hub: Hub, books: _Books) -> Adding:
    """What clients add of their training."""
    parts: dict[int, list[tuple[int, Reply]]] = {job.slot.client: [] for job in jobs}
    if not jobs:
        return Adding(0)
    layout, rows = engine.client.layout(engine.spec, jobs[0].round), {job.slot: job.row for job in jobs}
    for reply in engine.poll(engine.submit(jobs, hub.bank)):
        if layout.usable(reply):
            parts[reply.slot.client].append((rows[reply.slot], reply))
    adding = Adding(len(parts))
    for client, replies in parts.items():
        if not replies:  # zeros would be counted among those to hide among
            books.lost[client] = "nothing to add"
            continue
        with books.falling(client):
            adding.add(client, layout.words(replies, len(parts)))
    return adding


@dataclass
class _Books:
    """Bytes by client, and why some have no part any more."""

    sent: Counter[int] = field(default_factory=Counter)
    came: Counter[int] = field(default_factory=Counter)
    lost: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def falling(self, client: int) -> Iterator[None]:
        """A client whose numbers cannot be added is left out, as it would leave itself out elsewhere."""
        try:
            yield
        except (ValueError, StateError):
            self.lost[client] = "an error of its own"

    def why(self, client: int, otherwise: str) -> tuple[str, str]:
        """Code and reason."""
        return ("refused", self.lost[client]) if client in self.lost else ("lost", otherwise)

    def total(self, adding: Adding, told: int) -> Words:
        """The sum, of which every client was sent ``told`` bytes beside what the protocol takes."""
        found = adding.total()
        down, up = traffic(len(adding.clients), len(found))
        self.sent.update(dict.fromkeys(adding.clients, down + told))
        self.came.update(dict.fromkeys(adding.clients, up))
        return found


def places(memory: Mapping[str, Tensor]) -> Question:
    """What a client needs to find its rows."""
    return Question(memory[MEAN], memory[SCALE], memory[AXES], memory[CENTRES][None])


def slots_of(roster: Mapping[int, int]) -> list[Slot]:
    """All slots of a roster."""
    return [Slot(client, n) for client, many in sorted(roster.items()) for n in range(many)]


def table(engine: InProcess, hub: Hub, number: int) -> dict[Slot, int]:
    """The rows that this engine's clients choose; empty before there is anything to choose. Who cannot choose is in no row."""
    if CENTRES not in hub.memory:
        return {}
    start, now, found = tree.row(hub.bank, 0), Round(max(1, number), engine.sampler.seed), dict[Slot, int]()
    for client, many in sorted(engine.roster(now.number).items()):
        with suppress(ValueError, StateError):
            found |= rows_of(engine, client, many, places(hub.memory), now, start)
    return found


def rows_of(engine: InProcess, client: int, many: int, told: Question, now: Round, start: State) -> dict[Slot, int]:
    """A client's ``many`` slots and their rows."""
    slots = slots_of({client: many})
    found = _how(engine).choose(told, *_seen(engine, slots, now, start), now.seed)
    return dict(zip(slots, found, strict=True))


def answer(engine: InProcess, client: int, many: int, question: Question, now: Round, start: State) -> Tensor:
    """What a client of ``many`` slots adds to a question; ``start``: what newcomers start from."""
    return _how(engine).answer(question, *_seen(engine, slots_of({client: many}), now, start), now.seed)


def _how(engine: InProcess) -> chosen:
    if engine.client.choose is None:
        raise ValueError("nobody chooses rows under this method")
    return engine.client.choose


def _seen(engine: InProcess, slots: Sequence[Slot], now: Round, start: State) -> tuple[Tensor, list[int]]:
    """Looks ``[s, d]`` of slots, each of which is looked at once, and how many examples they have."""
    engine.see([slot for slot in slots if slot not in engine.seen_of], now, start)
    samples = [engine.view.data(slot, now.number).samples for slot in slots]
    return torch.stack([engine.seen_of[slot] for slot in slots]), samples
