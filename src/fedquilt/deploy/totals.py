"""A round of which the server sees sums, by messages: clients are told what to make, and what they make is added up masked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from typing import NamedTuple

from torch import Tensor

from fedquilt.assign.chosen import Question, packed
from fedquilt.deploy.messages import Ask, Place, Train
from fedquilt.deploy.parcel import parcel
from fedquilt.deploy.remote import Remote, by_client
from fedquilt.deploy.summing import Collection, Which
from fedquilt.engine.summing import slots_of
from fedquilt.errors import QuorumError
from fedquilt.method import remembering
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.sums import Total, decoded
from fedquilt.types import Failure, Hub, Job, Round, Shipment, Slot


class Found(NamedTuple):
    """What came of a sum: it, whose it is, why there is none, and slots that have no part in it though their client has."""

    words: Words | None
    there: Sequence[int]
    why: str
    undone: Mapping[int, Mapping[int, str]]


class Totals:
    """The sums of one round, of those who were there when it began. ``sent``, ``came``: bytes in blocks, by client; ``lost``: who
    fell out, and is not asked again in this round."""

    def __init__(self, remote: Remote, now: Round) -> None:
        self.remote, self.now, self.client, self.roster = remote, now, remote.client, remote.roster(now.number)
        self.sent: Counter[int] = Counter()
        self.came: Counter[int] = Counter()
        self.lost: dict[int, tuple[str, str]] = {}
        self.steps = count(1)

    def total(self, jobs: Sequence[Job], hub: Hub, shipments: Mapping[Slot, Shipment]) -> Total:
        """Of the changes; before, where clients choose rows and somebody is new, of what they are asked."""
        memory: dict[str, Tensor] = {}
        asked = jobs
        if self.client.choose:
            try:
                self.client.choose.settle(hub.memory, slots_of(self.roster), self.now, self._asked, memory)
            except QuorumError as error:
                why = {job.slot: self.lost.get(job.slot.client, ("lost", error.what)) for job in jobs}
                return Total(None, (), tuple(Failure(slot, *said) for slot, said in why.items()), self.sent, self.came, memory)
            asked = [job for job in jobs if job.slot.client not in self.lost]
            messages = self._choosing(asked, remembering(hub, memory))
        else:
            messages = self.remote.training(jobs, hub.bank, shipments)
        layout = self.client.layout(self.remote.spec, self.now)
        found = self._summed(messages, Which(self.remote.run, self.now.number), layout.size)
        failures = tuple(failure for job in jobs if (failure := self._failure(job.slot, found)))
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
        clients = sorted(self.roster.keys() - self.lost.keys())
        said = Place(**which._asdict(), pins=self.remote.pins.all, clients=len(clients))
        self.sent.update(dict.fromkeys(clients, len(block)))
        message = parcel(said, (block,)).pack()
        found = self._summed(dict.fromkeys(clients, message), which, self.client.choose.size(question, self.remote.fingerprint))
        if found.words is None:
            raise QuorumError(found.why)
        return decoded(found.words)

    def _choosing(self, jobs: Sequence[Job], hub: Hub) -> dict[int, bytes]:
        """Of every client: all rows and the centres, and which slots are to train."""
        blocks, mine_of = self.remote.choices(hub, self.client.common(self.remote.spec, self.now)), by_client(jobs)
        messages, pins = {}, self.remote.pins.all
        for client, mine in mine_of.items():
            asks = [Ask(slot=job.slot.number, leaves=None, since=0, effort=job.effort, new=False) for job in mine]
            said = Train(run=self.remote.run, pins=pins, round=self.now.number, asks=asks, clients=len(mine_of))
            messages[client] = parcel(said, blocks).pack()
            self.sent[client] += sum(map(len, blocks))
        return messages

    def _summed(self, messages: Mapping[int, bytes], which: Which, size: int) -> Found:
        """The sum of what clients make of their messages."""
        collection = Collection(which, len(messages), self.remote.told, sent=self.sent, came=self.came)
        ready = collection.ready(self.remote.told(messages))
        words, there = collection.total({client: keys for client, (keys, _) in ready.items()}, size) or (None, [])
        self.lost |= collection.lost
        return Found(words, there, collection.why, {client: undone for client, (_, undone) in ready.items()})

    def _failure(self, slot: Slot, found: Found) -> Failure | None:
        if slot.client not in found.there:
            return Failure(slot, *self.lost.get(slot.client, ("lost", found.why)))
        code = found.undone[slot.client].get(slot.number)
        return Failure(slot, code, "so it says") if code else None
