"""The server's engine when clients are elsewhere: jobs become messages, messages become replies."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor

from fedquilt import tree
from fedquilt.assign.chosen import CENTRES, packed
from fedquilt.deploy.messages import Ask, Hello, Judge, Judged, Pins, Present, Score, Train, Trained
from fedquilt.deploy.parcel import HEAD, UNREADABLE, Away, heard, parcel, plain, read, what_of
from fedquilt.deploy.transport import SILENT, Transport
from fedquilt.engine.kept import InMemory, Kept
from fedquilt.engine.summing import places
from fedquilt.errors import ConfigError, FedquiltError, StateError
from fedquilt.meter import fingerprint_size
from fedquilt.method import ClientPlan
from fedquilt.privacy.sums import Total
from fedquilt.types import Failure, Hub, Job, Leaf, Reply, Round, Shipment, Slot, Spec, Stack, State
from fedquilt.wire import message


@dataclass
class Remote:
    """An engine over a transport.

    Args:
        seed: of the run; rounds: how many.
        believed: round -> client -> number of slots, as the server's own partition has it: it evaluates on that. None: it has
            none, clients have data of their own, and what they say is so.
        run: 32 hexadecimal digits that were drawn for this run; the same when it is continued.
        fingerprint: numbers in what newcomers send of their data; 0: nothing.
        deadline: seconds that clients have for a round.
        refused: node -> why it does not take part; filled by :meth:`meet`.
        fits: raises if a client cannot have so many slots.
        numbers: node -> the client whose key it has; None: what a client says is believed.
    """

    transport: Transport
    spec: Spec
    client: ClientPlan
    seed: int
    rounds: int
    believed: Callable[[int], Mapping[int, int]] | None
    pins: Pins
    run: str
    fingerprint: int = 0
    deadline: float = 3600.0
    refused: dict[int, str] = field(default_factory=dict)
    fits: Callable[[int, int], None] = lambda client, slots: None
    numbers: Callable[[], Mapping[int, int]] | None = None
    kept: Kept = field(default_factory=InMemory)  # nothing: clients keep their own

    def __post_init__(self) -> None:
        self.leaves = tuple(sorted(self.spec.leaves, key=lambda leaf: leaf.name))
        self.nodes: dict[int, int] = {}  # client -> node
        self.said: dict[int, Present] = {}
        self.greeted: dict[int, tuple[int, float]] = {}  # ticket of a hello that is not answered yet -> node, until when
        self.out: dict[int, tuple[int, dict[int, Job]]] = {}  # ticket -> round, slot number -> job

    def meet(self) -> None:
        """Ask every node who it is; those that hold something else than this run's take no part until they say otherwise.

        Raises:
            ConfigError: nobody is left.
        """
        self._greet()
        self._heard(self.deadline)
        if not self.nodes:
            why = "; ".join(f"{node}: {reason}" for node, reason in sorted(self.refused.items())) or "no node is connected"
            raise ConfigError("no client takes part", where="clients", why=why, fix="start the clients, or mend what they say")

    def roster(self, number: int) -> Mapping[int, int]:
        """Client -> number of slots in a round, as they said. Nodes that connected meanwhile are asked who they are, and take part
        from the round on that begins after their answer."""
        self._heard(0.0)
        self._greet()
        held = {client: _at(one.slots, number) for client, one in sorted(self.said.items())}
        return {client: n for client, n in held.items() if n}

    def samples(self, slot: Slot) -> int:
        """Training examples of a slot, as its client said; 0 where it never came."""
        said = self.said[slot.client].samples if slot.client in self.said else []
        return said[slot.number] if slot.number < len(said) else 0

    def _greet(self) -> None:
        """Ask the nodes that take no part."""
        # Not those who were refused: they may have mended it, or its reason is gone.
        known = {*self.nodes.values(), *(node for node, _ in self.greeted.values())}
        hello = parcel(Hello(pins=self.pins)).pack()
        end = time.monotonic() + self.deadline
        self.greeted |= {self.transport.send(node, hello): (node, end) for node in self.transport.nodes() if node not in known}

    def _heard(self, seconds: float) -> None:
        """Who has answered by now."""
        if not self.greeted:
            return
        answers = self.transport.receive(list(self.greeted), seconds)
        rosters = [self.believed(number) for number in range(1, self.rounds + 1)] if self.believed else None
        now = time.monotonic()
        over = {ticket for ticket, (_, end) in self.greeted.items() if seconds or now >= end} | set(answers)
        heard = {self.greeted[ticket][0]: answers.get(ticket, "no answer") for ticket in sorted(over)}
        self.greeted = {ticket: entry for ticket, entry in self.greeted.items() if ticket not in over}
        found = {node: self._present(node, data, rosters) for node, data in heard.items()}
        present = {node: one for node, one in found.items() if one}
        claims, connected = Counter(one.client for one in present.values()), set(self.transport.nodes())
        for node, one in present.items():
            if claims[one.client] > 1:  # who of them is right cannot be known, and must not depend on who came first
                self.refused[node] = f"{claims[one.client]} nodes say that they are client {one.client}"
            elif self.nodes.get(one.client) in connected:
                self.refused[node] = f"client {one.client} is there already"
            else:
                self.nodes[one.client], self.said[one.client] = node, one
                self.refused.pop(node, None)

    def submit(self, jobs: Sequence[Job], bank: Stack, shipments: Mapping[Slot, Shipment]) -> list[int]:
        """One message per client; returns a ticket for each."""
        tickets, mine_of = [], by_client(jobs)
        for client, data in self.training(jobs, bank, shipments).items():
            ticket = self.transport.send(self.nodes[client], data)
            self.out[ticket] = mine_of[client][0].round.number, {job.slot.number: job for job in mine_of[client]}
            tickets.append(ticket)
        return tickets

    def training(self, jobs: Sequence[Job], bank: Stack, shipments: Mapping[Slot, Shipment]) -> dict[int, bytes]:
        """Client -> its message, in order."""
        blocks_of: dict[tuple[int, tuple[str, ...]], bytes] = {}  # most slots of a row are sent the same
        for job in jobs:
            what = job.row, shipments[job.slot].leaves
            if what not in blocks_of:
                blocks_of[what] = self._block(tree.row(bank, job.row), what[1])
        messages, mine_of = {}, by_client(jobs)
        how_many = {"clients": len(mine_of)} if self.client.summed else {}
        for client, mine in mine_of.items():
            asks = [self._ask(job, shipments[job.slot]) for job in mine]
            blocks = tuple(blocks_of[job.row, shipments[job.slot].leaves] for job in mine)
            said = Train(run=self.run, pins=self.pins.all, round=mine[0].round.number, asks=asks, **how_many)
            messages[client] = parcel(said, blocks).pack()
        return messages

    def poll(self, tickets: Sequence[int], deadline: float | None = None) -> list[Reply | Failure]:
        """All that came until the deadline, and a failure for every other job."""
        answers = self.transport.receive(tickets, self.deadline if deadline is None else deadline)
        found: list[Reply | Failure] = []
        for ticket in tickets:
            number, jobs = self.out.pop(ticket)
            try:
                found += self._replies(answers.get(ticket, SILENT), number, jobs)
            except Away as error:
                found += [Failure(job.slot, error.code, error.why) for job in jobs.values()]
            except UNREADABLE as error:
                found += [Failure(job.slot, "malformed", what_of(error)) for job in jobs.values()]
        return found

    def total(self, jobs: Sequence[Job], hub: Hub, shipments: Mapping[Slot, Shipment]) -> Total:
        """Let clients train, and collect the sum of what they would have sent, behind masks."""
        from fedquilt.deploy.totals import Totals  # here, for not everybody has cryptography

        return Totals(self, jobs[0].round).total(jobs, hub, shipments)

    def told(self, messages: Mapping[int, bytes]) -> dict[int, bytes | str]:
        """What clients answer to a message each, or why nothing came."""
        tickets = {self.transport.send(self.nodes[client], data): client for client, data in messages.items()}
        answers = self.transport.receive(list(tickets), self.deadline)
        return {client: answers.get(ticket, SILENT) for ticket, client in tickets.items()}

    def choices(self, hub: Hub, names: Sequence[str]) -> tuple[bytes, ...]:
        """What a client needs to choose from: these leaves of every row but that of newcomers, and the centres."""
        rows = range(1, tree.length(hub.bank))
        return (*(self._block(tree.row(hub.bank, row), names) for row in rows), packed(places(hub.memory)))

    def judge(self, hub: Hub) -> list[tuple[Slot, Score]]:
        """What clients say of their rows after a round, on data that they alone have; in order. Who says nothing in time, or
        nonsense, is left out."""
        now, asked = max(1, hub.step), {}
        for client, many in self.roster(now).items():
            slots, names = list(range(many)), self.spec.names()
            chosen = self.client.choose is not None and CENTRES in hub.memory  # else there is nothing to choose from yet
            if chosen:
                blocks = self.choices(hub, names)
            else:
                blocks = tuple(self._block(tree.row(hub.bank, hub.row_of(Slot(client, number))), names) for number in slots)
            said = Judge(run=self.run, pins=self.pins.all, round=hub.step, slots=slots, chosen=chosen)
            asked[self.transport.send(self.nodes[client], parcel(said, blocks).pack())] = client
        answers, found = self.transport.receive(list(asked), self.deadline), []
        for ticket, client in asked.items():
            with suppress(Away, *UNREADABLE):
                found += [
                    (Slot(client, score.slot), score) for score in self._judged(answers.get(ticket, SILENT), hub.step, client)
                ]
        return sorted(found, key=lambda pair: (pair[0], pair[1].part))

    def _judged(self, data: bytes | str, number: int, client: int) -> list[Score]:
        judged = read(heard(data, HEAD), Judged)
        places = [(score.slot, score.part) for score in judged.scores]
        if (judged.run, judged.round) != (self.run, number) or len(set(places)) < len(places):
            raise StateError("an answer of another run or round, or one that says something twice", where="message")
        there = _at(self.said[client].slots, max(1, number))
        return [score for score in judged.scores if score.slot < there]

    def state_of(self, slot: Slot, row: State) -> State:
        """The row: private leaves are not here."""
        return row

    def own(self, slot: Slot) -> State:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing to release."""

    def _present(self, node: int, data: bytes | str, rosters: Sequence[Mapping[int, int]] | None) -> Present | None:
        """Who a node says it is; None if it takes no part. ``rosters``: what is believed, round by round."""
        try:
            present = read(heard(data, HEAD), Present)
        except Away as error:
            self.refused[node] = error.why if error.code == "lost" else f"it has {error.why}"
            return None
        except UNREADABLE as error:
            self.refused[node] = what_of(error)
            return None
        if self.numbers is not None and self.numbers().get(node) != present.client:
            self.refused[node] = f"it says that it is client {present.client}, and its key is another's"
            return None
        try:
            self.fits(present.client, max(n for _, n in present.slots) if present.slots else 0)
        except FedquiltError as error:
            self.refused[node] = plain(error.what)
            return None
        differ = any(_at(present.slots, n) != roster.get(present.client, 0) for n, roster in enumerate(rosters or (), 1))
        if differ or not any(n for _, n in present.slots):
            self.refused[node] = f"as client {present.client} it has {'another partition' if differ else 'no data'}"
            return None
        return present

    def _most(self, jobs: int) -> int:
        """Bytes of the largest answer to so many jobs."""
        return HEAD + jobs * (message.size(self.leaves) + fingerprint_size(self.fingerprint))

    def _block(self, row: State, names: Sequence[str]) -> bytes:
        chosen = self.spec.only(names)
        return message.encode(chosen, row) if chosen else b""

    def _ask(self, job: Job, shipment: Shipment) -> Ask:
        wanted = set(shipment.leaves)
        places = [i for i, leaf in enumerate(self.leaves) if leaf.name in wanted]
        leaves = None if len(places) == len(self.leaves) else places
        return Ask(slot=job.slot.number, leaves=leaves, since=shipment.since, effort=job.effort, new=job.row == 0)

    def _replies(self, data: bytes | str, number: int, jobs: Mapping[int, Job]) -> list[Reply | Failure]:
        """What one client's answer comes to: something for every job."""
        answer = heard(data, self._most(len(jobs)))
        trained = read(answer, Trained)
        if trained.run != self.run:
            raise StateError("an answer of another run", where="message")
        leaves = self.spec.only(self.client.share(Round(number, self.seed)))
        blocks = iter(answer.blocks)
        client = next(iter(jobs.values())).slot.client
        found: list[Reply | Failure] = []
        for one in trained.done:
            delta = _decoded(blocks, leaves)
            look = _decoded(blocks, [message.fingerprint(one.fingerprint)])["fingerprint"] if one.fingerprint else None
            extra = {"loss": math.nan if one.loss is None else one.loss}
            found.append(Reply(Slot(client, one.slot), trained.round, delta, one.weight, extra, look))
        if next(blocks, None) is not None:
            raise StateError("a trained message with more blocks than slots", where="message")
        found += [Failure(jobs[one.slot].slot, one.code, "so it says") for one in trained.undone if one.slot in jobs]
        silent = set(jobs) - {entry.slot.number for entry in found}
        return found + [Failure(jobs[slot].slot, "lost", "the answer does not mention it") for slot in sorted(silent)]


def by_client(jobs: Sequence[Job]) -> dict[int, list[Job]]:
    """Client -> its jobs, both in order."""
    found: dict[int, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.slot):
        found.setdefault(job.slot.client, []).append(job)
    return found


def _decoded(blocks: Iterator[bytes], leaves: Sequence[Leaf]) -> dict[str, Tensor]:
    """The next block.

    Raises:
        StateError: there is none, or it holds something else.
    """
    block = next(blocks, None)
    if block is None:
        raise StateError("a trained message with fewer blocks than slots", where="message")
    return message.decode(block, leaves) if leaves else {}


def _at(changes: Sequence[tuple[int, int]], number: int) -> int:
    """Slots in a round."""
    return next((n for since, n in reversed(changes) if since <= number), 0)
