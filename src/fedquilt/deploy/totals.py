"""A round of which the server sees sums, by messages: clients are told what to make, and what they make is added up masked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fedquilt.assign.chosen import Question, packed
from fedquilt.deploy.messages import Ask, Place, Train
from fedquilt.deploy.parcel import parcel
from fedquilt.deploy.summing import Collection, Which
from fedquilt.errors import QuorumError
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.sums import Total, decoded
from fedquilt.types import Failure, Hub, Job, Round, Shipment, Slot

if TYPE_CHECKING:
    from fedquilt.deploy.remote import Remote


class Found(NamedTuple):
    """What came of a sum: it, whose it is, why others are not in it, and slots that have no part in it though their client has."""

    words: Words | None
    there: Sequence[int]
    lost: Mapping[int, tuple[str, str]]
    undone: Mapping[int, Mapping[int, str]]


class Totals:
    """The sums of one round. ``sent``, ``came``: bytes in blocks, by client."""

    def __init__(self, remote: Remote, now: Round) -> None:
        self.remote, self.now, self.client = remote, now, remote.client
        self.sent: Counter[int] = Counter()
        self.came: Counter[int] = Counter()
        self.steps = count(1)

    def total(self, jobs: Sequence[Job], hub: Hub, shipments: Mapping[Slot, Shipment]) -> Total:
        """Of the changes; before, where clients choose rows and somebody is new, of what they are asked."""
        memory: dict[str, Tensor] = {}
        if self.client.choose:
            there = [Slot(client, n) for client, many in self.remote.roster(self.now.number).items() for n in range(many)]
            try:
                memory = self.client.choose.settle(hub.memory, there, self.now, self._asked)
            except QuorumError as error:
                return Total(None, (), tuple(Failure(job.slot, "lost", error.what) for job in jobs), self.sent, self.came)
            hub = replace(hub, memory={**hub.memory, **memory})
            messages = self._choosing(jobs, hub)
        else:
            messages = self.remote.training(jobs, hub.bank, shipments)
        layout = self.client.layout(self.remote.leaves, self.now)
        found = self._summed(messages, Which(self.remote.run, self.now.number), layout.size)
        failures = tuple(failure for job in jobs if (failure := _failure(job.slot, found)))
        done = {job.slot for job in jobs} - {failure.slot for failure in failures}
        sums = layout.read(found.words) if found.words is not None else None
        return Total(sums, tuple(sorted(done)), failures, self.sent, self.came, memory)

    def _asked(self, question: Question) -> Tensor:
        """What all clients together answer.

        Raises:
            QuorumError: there is no sum.
        """
        if self.client.choose is None:
            raise ValueError("nobody chooses rows under this method")
        which, block = Which(self.remote.run, self.now.number, next(self.steps)), packed(question)
        clients = sorted(self.remote.roster(self.now.number))
        said = Place(**which._asdict(), pins=self.remote.pins.all, clients=len(clients))
        self.sent.update(dict.fromkeys(clients, len(block)))
        message = parcel(said, (block,)).pack()
        found = self._summed(dict.fromkeys(clients, message), which, self.client.choose.size(question, self.remote.fingerprint))
        if found.words is None:
            raise QuorumError(next(iter(found.lost.values()))[1])
        return decoded(found.words)

    def _choosing(self, jobs: Sequence[Job], hub: Hub) -> dict[int, bytes]:
        """Of every client: all rows and the centres, and which slots are to train."""
        blocks = self.remote.choices(hub, self.client.common(self.remote.spec, self.now))
        clients = sorted({job.slot.client for job in jobs})
        messages = {}
        for client in clients:
            mine = [job for job in jobs if job.slot.client == client]
            asks = [Ask(slot=job.slot.number, leaves=None, since=0, effort=job.effort, new=False) for job in mine]
            pins = self.remote.pins.all
            said = Train(run=self.remote.run, pins=pins, round=self.now.number, asks=asks, clients=len(clients))
            messages[client] = parcel(said, blocks).pack()
            self.sent[client] += sum(map(len, blocks))
        return messages

    def _summed(self, messages: Mapping[int, bytes], which: Which, size: int) -> Found:
        """The sum of what clients make of their messages."""
        collection = Collection(which, len(messages), self.remote.told, sent=self.sent, came=self.came)
        ready = collection.ready(self.remote.told(messages))
        words, there = collection.total({client: keys for client, (keys, _) in ready.items()}, size) or (None, [])
        lost = {client: ("lost", collection.why) for client in messages if client not in there} | collection.lost
        return Found(words, there, lost, {client: undone for client, (_, undone) in ready.items()})


def _failure(slot: Slot, found: Found) -> Failure | None:
    if slot.client not in found.there:
        return Failure(slot, *found.lost[slot.client])
    code = found.undone[slot.client].get(slot.number)
    return Failure(slot, code, "so it says") if code else None
