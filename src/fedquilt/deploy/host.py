"""A client's side of a run: it answers what the server asks, with its own data, and keeps its own state on its own disk.

A message is answered the same way however often it comes, and whatever happened in between: after every round the host writes what
its slots hold (the leaves that it was sent, its private ones, its optimisers) as a generation of its own, and a message of round r
begins from the newest generation before r. So a server that fell back to an earlier round finds clients that fall back with it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.chosen import Question, unpacked
from fedquilt.deploy.generations import Generations, private
from fedquilt.deploy.messages import (
    MOST,
    Ask,
    Done,
    Hello,
    Judge,
    Judged,
    Pins,
    Place,
    Present,
    Ready,
    Refused,
    Score,
    Train,
    Trained,
    Undone,
)
from fedquilt.deploy.parcel import HEAD, Parcel, parcel, read, unpack
from fedquilt.engine.base import InProcess
from fedquilt.engine.kept import InMemory
from fedquilt.engine.summing import answer, rows_of
from fedquilt.errors import FedquiltError, QuorumError, StateError
from fedquilt.evaluate import Evaluator
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.sums import KEYS, encoded
from fedquilt.runs.atomic import write_atomic
from fedquilt.types import Job, Leaf, Reply, Round, Slot, State
from fedquilt.wire import message

if TYPE_CHECKING:
    from fedquilt.deploy.summing import Party

REASONS: dict[str, Literal["an unreadable message", "in another sum already"]] = {
    "message": "an unreadable message",
    "openings": "in another sum already",
}
HELD, VISIT = "held", "visit"  # kinds of what a slot keeps, beside the engine's own


@dataclass
class Host:
    """One client.

    Args:
        engine: over this client's data alone.
        evaluator: likewise.
        start: what an adapter begins as; all leaves.
        rounds: of the run; from which on there are how many slots is said at the start.
        folder: of its own state, a folder per run in it.
        keep: generations.
    """

    client: int
    engine: InProcess
    evaluator: Evaluator
    start: State
    pins: Pins
    seed: int
    rounds: int
    folder: Path
    keep: int = 3
    leaves: tuple[Leaf, ...] = field(init=False)
    party: Party | None = None  # in the sum that is under way, if there is one
    answered: tuple[bytes, Parcel] = field(default=(b"", Parcel("")), repr=False)  # its last phase

    def __post_init__(self) -> None:
        self.leaves = tuple(sorted(self.engine.spec.leaves, key=lambda leaf: leaf.name))
        private(self.folder)

    def answer(self, data: bytes) -> bytes:
        """The reply to a message; what the host will not do it says. Reasons in full go to its own log."""
        try:
            asked = unpack(data, self._most)
            match asked.kind:
                case "hello":
                    said = self._hello(read(asked, Hello))
                case "judge":
                    said = self._judge(read(asked, Judge), asked.blocks)
                case "place":
                    said = self._place(read(asked, Place), asked.blocks)
                case "share" | "mask" | "open":
                    said = self._phase(asked, data)
                case _:
                    said = self._train(read(asked, Train), asked.blocks)
        except QuorumError as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            said = parcel(Refused(why="too few clients to hide among"))
        except (FedquiltError, OSError) as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            place = error.where if isinstance(error, StateError) else ""
            said = parcel(Refused(why=REASONS.get(place, "an error of its own")))
        return said.pack()

    @property
    def _most(self) -> int:
        """Bytes of the largest message: every slot's whole adapter, or as many clients' keys as a head can name."""
        choose, look = self.engine.client.choose, self.engine.fingerprint
        adapters = max(len(self.engine.view.slots), choose.k if choose else 0)
        centres = choose.largest(look.size, choose.starts) if choose and look else 0
        return HEAD + KEYS * HEAD // 8 + adapters * message.size(self.leaves) + centres

    def _hello(self, hello: Hello) -> Parcel:
        if other := self.pins.other(hello.pins):
            return parcel(Refused(why=other))
        counts = [(number, self.engine.roster(number).get(self.client, 0)) for number in range(1, self.rounds + 1)]
        changes = [entry for i, entry in enumerate(counts) if not i or entry[1] != counts[i - 1][1]]
        if self.engine.client.summed:  # sums tell how many examples there are in all, and nobody's
            return parcel(Present(client=self.client, slots=changes, samples=[]))
        samples = [self.engine.view.data(slot, self.rounds).samples for slot in sorted(self.engine.view.slots)]
        return parcel(Present(client=self.client, slots=changes, samples=samples))

    def _train(self, train: Train, blocks: tuple[bytes, ...]) -> Parcel:
        if train.pins != self.pins.all:
            return parcel(Refused(why="another configuration"))
        client = self.engine.client
        wanted = client.choose.rows if client.choose else len(train.asks)  # all rows but that of newcomers, and the centres
        if wanted != len(blocks) or len({ask.slot for ask in train.asks}) != len(train.asks):
            raise StateError("a train message with other blocks than slots", where="message")
        if (train.clients > 0) != client.summed:
            raise StateError("a train message that does not say how many clients add up, or says it in vain", where="message")
        generations = Generations(self.folder / train.run, self.keep)
        if not self._same(generations.folder):
            return parcel(Refused(why="other data than before"))
        kept = InMemory()
        for slot, state in generations.before(train.round).items():
            kept.put(slot, state)
        jobs, undone = (self._chosen if client.choose else self._asked)(train, blocks, kept)
        replies = self._trained(jobs, kept)
        generations.write(train.round, kept)
        if not client.summed:
            return self._reply(train, replies, undone)
        rows = {job.slot: job.row if client.choose else 0 for job in jobs}
        layout = client.layout(self.engine.spec, Round(train.round, self.seed))
        usable = [(rows[reply.slot], reply) for reply in replies if layout.usable(reply)]
        if not usable:  # zeros would be counted among those to hide among
            return parcel(Refused(why="nothing to add"))
        return self._ready(train, undone, partial(layout.words, usable))

    def _asked(self, train: Train, blocks: tuple[bytes, ...], kept: InMemory) -> tuple[list[Job], list[Undone]]:
        """Jobs of slots that hold what the server thinks; what they were sent is in ``kept``."""
        jobs, undone, now = [], [], Round(train.round, self.seed)
        there = self.engine.roster(train.round).get(self.client, 0)
        for ask, block in zip(train.asks, blocks, strict=True):
            slot = Slot(self.client, ask.slot)
            if ask.slot >= there:
                undone.append(Undone(slot=ask.slot, code="refused"))
            elif ask.since and _visit(kept.get(slot)) != ask.since:
                undone.append(Undone(slot=ask.slot, code="behind"))
            else:
                held = tree.merge(kept.get(slot).get(HELD, {}) if ask.since else {}, self._received(ask, block))
                kept.put(slot, {**kept.get(slot), HELD: held, VISIT: {"round": torch.tensor([train.round])}})
                jobs.append(Job(slot, 0 if ask.new else 1, now, ask.effort))
        return jobs, undone

    def _chosen(self, train: Train, blocks: tuple[bytes, ...], kept: InMemory) -> tuple[list[Job], list[Undone]]:
        """Jobs in the rows that this client chooses."""
        jobs, undone, now = [], [], Round(train.round, self.seed)
        rows = self._rows(blocks, now)
        leaves = self.engine.spec.only(self.engine.client.common(self.engine.spec, now))
        for ask in train.asks:
            slot = Slot(self.client, ask.slot)
            if slot not in rows:
                undone.append(Undone(slot=ask.slot, code="refused"))
                continue
            kept.put(slot, {**kept.get(slot), HELD: message.decode(blocks[rows[slot] - 1], leaves)})
            jobs.append(Job(slot, rows[slot], now, ask.effort))
        return jobs, undone

    def _rows(self, blocks: tuple[bytes, ...], now: Round) -> dict[Slot, int]:
        """By the centres, which are the last block."""
        told = self._question(blocks[-1])
        if told.centres is None or len(told.centres) != 1:
            raise StateError("not one set of centres", where="message")
        many = self.engine.roster(now.number).get(self.client, 0)
        return rows_of(self.engine, self.client, many, told, now, self.start) if many else {}

    def _question(self, block: bytes) -> Question:
        how, look = self.engine.client.choose, self.engine.fingerprint
        if how is None or look is None:
            raise StateError("centres, where nobody chooses a row", where="message")
        return unpacked(block, how.k, look.size, how.starts)

    def _place(self, place: Place, blocks: tuple[bytes, ...]) -> Parcel:
        if place.pins != self.pins.all:
            return parcel(Refused(why="another configuration"))
        if len(blocks) != 1:
            raise StateError("a question of several blocks", where="message")
        now = Round(place.round, self.seed)
        many = self.engine.roster(now.number).get(self.client, 0)
        if not many:
            return parcel(Refused(why="nothing to add"))
        vector = answer(self.engine, self.client, many, self._question(blocks[0]), now, self.start)
        return self._ready(place, [], partial(encoded, vector))

    def _ready(self, asked: Train | Place, undone: list[Undone], words: Callable[[int], Words]) -> Parcel:
        """Keep what would have been sent until the others are ready, too."""
        from fedquilt.deploy.summing import Openings, Party, Which  # here, for not everybody has cryptography

        which = Which(asked.run, asked.round, asked.step if isinstance(asked, Place) else 0)
        try:
            openings = Openings(Generations(self.folder / asked.run, self.keep).folder / "opened.jsonl")
            self.party = Party(self.client, which, words(asked.clients), asked.clients, openings)
        except ValueError as error:
            raise StateError("these numbers cannot be added", where="sum", why=str(error)) from error
        return parcel(Ready(**which._asdict(), undone=undone), (self.party.keys(),))

    def _phase(self, asked: Parcel, data: bytes) -> Parcel:
        """A phase of the sum; the same again if it is asked the same again, for its answer may have been lost on the way."""
        if self.answered[0] == data:
            return self.answered[1]
        if self.party is None:
            raise StateError("a phase of a sum that is not under way here", where="sum", why="the worker is another one by now")
        self.answered = data, self.party.answer(asked)
        if asked.kind == "open":  # nothing of it is needed any more
            self.party = None
        return self.answered[1]

    def _same(self, folder: Path) -> bool:
        """Whether the run's slots are of the same tasks as when it began: what is kept of a slot is of its task."""
        slots = sorted((slot.number, *data.tasks) for slot, data in self.engine.view.slots.items())
        digest, path = hashlib.sha256(repr(slots).encode()).hexdigest(), folder / "data.sha256"
        if not path.exists():
            write_atomic(path, digest.encode())
        return path.read_text(encoding="ascii") == digest

    def _judge(self, judge: Judge, blocks: tuple[bytes, ...]) -> Parcel:
        """How good these adapters are on this client's own evaluation rows; leaves that stay here are its own."""
        if judge.pins != self.pins.all:
            return parcel(Refused(why="another configuration"))
        choose = self.engine.client.choose if judge.chosen else None
        if (choose.rows if choose else len(judge.slots)) != len(blocks) or len(set(judge.slots)) != len(judge.slots):
            raise StateError("a judge message with other blocks than slots", where="message")
        kept, now = Generations(self.folder / judge.run, self.keep).after(judge.round), max(1, judge.round)
        there, scores = self.engine.roster(now).get(self.client, 0), []
        chosen = self._rows(blocks, Round(now, self.seed)) if choose else {}
        for place, number in enumerate(judge.slots):
            slot = Slot(self.client, number)
            if number >= there:
                continue
            block = blocks[chosen[slot] - 1 if choose else place]
            state = tree.merge(message.decode(block, self.leaves), kept.get(slot, {}).get("private", {}))
            for part, (name, examples) in enumerate(self.engine.view.data(slot, now).parts):
                found = self.evaluator.of(state, name)
                metrics = {key: value if abs(value) <= MOST else None for key, value in found.items()}
                many = 0 if self.engine.client.summed else len(examples)  # which of these sums are made nobody is told
                scores.append(Score.model_validate({"slot": number, "part": part, "metrics": metrics, "samples": many}))
        return parcel(Judged(run=judge.run, round=judge.round, scores=scores))

    def _received(self, ask: Ask, block: bytes) -> dict[str, Tensor]:
        indices = range(len(self.leaves)) if ask.leaves is None else ask.leaves
        if any(not 0 <= index < len(self.leaves) for index in indices):
            raise StateError("a leaf that this adapter does not have", where="message")
        return message.decode(block, [self.leaves[index] for index in indices]) if indices else {}

    def _trained(self, jobs: list[Job], kept: InMemory) -> list[Reply]:
        """Train, with the engine's memory in the generation that is being made.

        Leaves that a slot was never sent are its own: they begin as this client drew them."""
        self.engine.kept = kept
        return list(self.engine.answer(jobs, [tree.merge(self.start, kept.get(job.slot)[HELD]) for job in jobs]))

    def _reply(self, train: Train, replies: list[Reply], undone: list[Undone]) -> Parcel:
        leaves, blocks, done = self.engine.spec.only(self.engine.client.share(Round(train.round, self.seed))), [], []
        for reply in replies:
            blocks.append(message.encode(leaves, reply.delta) if leaves else b"")
            numbers = 0 if reply.fingerprint is None else reply.fingerprint.numel()
            if reply.fingerprint is not None:
                blocks.append(message.encode([message.fingerprint(numbers)], {"fingerprint": reply.fingerprint}))
            loss = reply.extra["loss"] if abs(reply.extra["loss"]) <= MOST else None  # NaN is not
            done.append(Done(slot=reply.slot.number, weight=reply.weight, loss=loss, fingerprint=numbers))
        return parcel(Trained(run=train.run, round=train.round, done=done, undone=undone), tuple(blocks))


def _visit(kept: Mapping[str, State]) -> int:
    """The round in which a slot was last sent something; 0: never."""
    return int(kept[VISIT]["round"]) if VISIT in kept else 0
