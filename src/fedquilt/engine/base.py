"""The seam between the drive loop and whatever runs the clients, and what all in-process engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from fedquilt import tree
from fedquilt.data.view import SlotData, View
from fedquilt.engine import summing
from fedquilt.engine.batches import Draw, Sampler
from fedquilt.engine.kept import InMemory, Kept
from fedquilt.method import ClientPlan
from fedquilt.models.fingerprint import Look
from fedquilt.models.heap import Heap
from fedquilt.models.network import Network
from fedquilt.privacy.sums import Total
from fedquilt.ticks import Tick, between, silent
from fedquilt.types import Failure, Hub, Job, Reply, Round, Shipment, Slot, Spec, Stack, State


class Engine(Protocol):
    """Runs jobs. Synchronous, deadline and buffered-asynchronous clocks all work through submit and poll.

    ``kept``: where clients' own states are; a run puts its directory here, and with it they are part of a checkpoint.
    """

    kept: Kept

    def roster(self, number: int) -> Mapping[int, int]:
        """Client -> number of slots in a round: all that a server may know of the clients' data."""
        ...

    def submit(self, jobs: Sequence[Job], bank: Stack, shipments: Mapping[Slot, Shipment]) -> list[int]:
        """Hand out jobs with the rows they start from, of which ``shipments`` have to travel; returns tickets."""
        ...

    def poll(self, tickets: Sequence[int], deadline: float | None = None) -> Sequence[Reply | Failure]:
        """What is there, at the latest when ``deadline`` seconds have passed."""
        ...

    def total(self, jobs: Sequence[Job], hub: Hub, shipments: Mapping[Slot, Shipment]) -> Total:
        """Both at once, of clients that add up among themselves."""
        ...

    def state_of(self, slot: Slot, row: State) -> State:
        """The adapter that slot uses when the server's row is ``row``: private leaves in place. For evaluation and export."""
        ...

    def own(self, slot: Slot) -> State:
        """The slot's private leaves: a client that never took part has none, and uses its row as it is."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Trained(NamedTuple):
    """One slot after local training; may be views of what was trained together."""

    state: State  # trained leaves, final values
    delta: State  # the same against their start
    moments: State  # optimiser moments, where they persist
    loss: float  # mean training loss over the local steps


@dataclass(frozen=True)
class Work:
    """One job with everything its training needs."""

    job: Job
    data: SlotData
    start: State  # all leaves
    moments: State | None  # None: fresh optimiser
    steps: int
    kept: Mapping[str, State]  # what the slot has from earlier rounds


class InProcess(ABC):
    """An engine whose clients live in this process and share one frozen base model.

    Args:
        cohort: slots trained together; results do not depend on it beyond rounding (sequential: not at all).
        fingerprint: how newcomers look at their data; needed if the method asks them to.
        tick: called with the number of slot-steps just done, and with 0 before every pass that is none.
    """

    def __init__(
        self,
        view: View,
        spec: Spec,
        client: ClientPlan,
        network: Network,
        seed: int,
        cohort: int = 64,
        tick: Tick = silent,
        fingerprint: Look | None = None,
    ) -> None:
        self.view, self.spec, self.client, self.network = view, spec, client, network
        self.sampler = Sampler(view.tasks, client.local, seed)
        self.cohort, self.tick, self.fingerprint = cohort, tick, fingerprint
        self.heads = {name: index for index, name in enumerate(sorted(view.tasks))} if spec.head == "per-task" else {}
        self.kept: Kept = InMemory()
        self.replies: dict[int, Reply] = {}
        self.seen_of: dict[Slot, Tensor] = {}  # looks at slots that choose their rows themselves
        self.issued = 0
        self.heap = Heap()

    def there(self, stack: Stack) -> Stack:
        """On the model's device."""
        return tree.map_leaves(lambda x: tree.there(x, self.network.device), stack)

    def roster(self, number: int) -> Mapping[int, int]:
        """Client -> number of slots in a round."""
        return self.view.roster(number)

    def submit(self, jobs: Sequence[Job], bank: Stack, shipments: Mapping[Slot, Shipment] | None = None) -> list[int]:
        """Train all jobs now. Nothing has to travel."""
        rows = tree.unstack(bank)
        tickets = []
        for reply in self.answer(jobs, [rows[job.row] for job in jobs]):
            self.issued += 1
            self.replies[self.issued] = reply
            tickets.append(self.issued)
        return tickets

    def answer(self, jobs: Sequence[Job], starts: Sequence[State]) -> Iterator[Reply]:
        """Train jobs from these states, ``cohort`` slots at a time."""
        for begin in range(0, len(jobs), self.cohort):
            some = slice(begin, begin + self.cohort)
            works = [self._work(job, start) for job, start in zip(jobs[some], starts[some], strict=True)]
            looks, shared = self._looks(works), frozenset(self.client.share(works[0].job.round))
            for work, done in zip(works, self.train(works), strict=True):
                yield self._reply(work, done, looks.get(work.job.slot), shared)

    def poll(self, tickets: Sequence[int], deadline: float | None = None) -> list[Reply]:
        """All replies: work was done at submission."""
        return [self.replies.pop(ticket) for ticket in tickets if ticket in self.replies]

    def total(self, jobs: Sequence[Job], hub: Hub, shipments: Mapping[Slot, Shipment] | None = None) -> Total:
        """The sum of what all clients would add; nobody is away, and nobody is hidden from."""
        return summing.total(self, jobs, hub)

    def see(self, slots: Sequence[Slot], now: Round, start: State) -> None:
        """Look at slots as if they came now, and keep what was seen: it depends on nothing but the data and the common start."""
        jobs = [Job(slot, 0, now, self.client.first_effort) for slot in slots]
        works = [Work(job, self.view.data(job.slot, now.number), start, None, self.steps(job), {}) for job in jobs]
        self.seen_of.update(self._looks(works))

    @abstractmethod
    def train(self, works: Sequence[Work]) -> list[Trained]:
        """Local training of a cohort."""

    def count_steps(self, jobs: Sequence[Job]) -> int:
        """Slot-steps that these jobs will make (for progress bars)."""
        return sum(self.steps(job) for job in jobs)

    def state_of(self, slot: Slot, row: State) -> State:
        """The row with the slot's private leaves in place."""
        return tree.merge(row, self.own(slot))

    def own(self, slot: Slot) -> State:
        """The slot's private leaves."""
        return self.kept.get(slot).get("private", {})

    def close(self) -> None:  # noqa: B027 - an engine in this process has nothing to release
        """Nothing to release."""

    def steps(self, job: Job) -> int:
        """Local steps of a job."""
        return self._steps(job, self.view.data(job.slot, job.round.number))

    def _steps(self, job: Job, data: SlotData) -> int:
        return self.client.local.count(data.samples, len(data.parts), job.effort)

    def _work(self, job: Job, row: State) -> Work:
        kept = self.kept.get(job.slot)
        start = tree.merge(row, kept["private"]) if "private" in kept else row
        data = self.view.data(job.slot, job.round.number)
        return Work(job, data, start, kept.get("moments"), self._steps(job, data), kept)

    def _reply(self, work: Work, done: Trained, look: Tensor | None, shared: frozenset[str]) -> Reply:
        job, delta = work.job, done.delta
        keep: dict[str, State] = dict(work.kept)
        if private := done.state.keys() - shared:
            keep["private"] = tree.merge(keep.get("private", {}), tree.own(tree.select(done.state, private)))
            delta = tree.select(delta, shared)
        if self.client.local.memory == "persist":
            keep["moments"] = tree.own(done.moments)
        if any(keep.values()):  # an optimiser without state is nothing to keep
            self.kept.put(job.slot, keep)
        delta = self.client.wire.send(delta, job) if delta else delta
        return Reply(job.slot, job.round.number, delta, float(work.data.samples), {"loss": done.loss}, look)

    def _looks(self, works: Sequence[Work]) -> dict[Slot, Tensor]:
        """Fingerprints of the newcomers among the works, if the method asks for them."""
        asked = [work for work in works if self.client.fingerprint and work.job.row == 0]
        if not asked:
            return {}
        if self.fingerprint is None:
            raise ValueError("the method asks for fingerprints, and the engine was given nothing to compute them")
        found = self.look(self.fingerprint, asked)
        return {work.job.slot: x for work, x in zip(asked, found, strict=True)}

    def look(self, how: Look, works: Sequence[Work]) -> list[Tensor]:
        """Fingerprints of these works' data."""
        return [how.of((draw.batch() for draw in self.seen(how, work)), work.start) for work in works]

    def seen(self, how: Look, work: Work) -> Iterator[Draw]:
        """The batches that are looked at."""
        most = min(how.examples, work.steps * self.client.local.batch) if how.as_trained else how.examples
        return between(self.sampler.some(work.job.slot, work.data, most), self.tick)


def starts(works: Sequence[Work], names: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The leaves ``names`` of all works as one stack, and the others as another."""
    whole = tree.stack([work.start for work in works])
    return tree.select(whole, names), tree.select(whole, whole.keys() - set(names))
