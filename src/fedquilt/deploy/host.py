"""A client's side of a run: it answers what the server asks, with its own data, and keeps its own state on its own disk.

A message is answered the same way however often it comes, and whatever happened in between: after every round the host writes what
its slots hold (the leaves that it was sent, its private ones, its optimisers) as a generation of its own, and a message of round r
begins from the newest generation before r. So a server that fell back to an earlier round finds clients that fall back with it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor

from fedquilt import tree
from fedquilt.deploy.parcel import (
    HEAD,
    MOST,
    Ask,
    Done,
    Hello,
    Judge,
    Judged,
    Parcel,
    Pins,
    Present,
    Ready,
    Refused,
    Score,
    Train,
    Trained,
    Undone,
    parcel,
    read,
    unpack,
)
from fedquilt.engine.base import InProcess
from fedquilt.engine.kept import InMemory, kept_of, slot_of
from fedquilt.errors import FedquiltError, QuorumError, StateError
from fedquilt.evaluate import Evaluator
from fedquilt.runs.atomic import write_atomic
from fedquilt.types import Job, Leaf, Reply, Round, Slot, State
from fedquilt.wire import message

if TYPE_CHECKING:
    from fedquilt.deploy.summing import Party

NAME = re.compile(r"round-(\d{6,})-([0-9a-f]{64})\.safetensors")
HELD, VISIT = "held", "visit"  # kinds of what a slot keeps, beside the engine's own


@dataclass
class Generations:
    """What a client's slots held after each of the last rounds: a file per round, named by its content.

    Args:
        keep: rounds. A server that writes a checkpoint every k rounds may fall back by k, and by k more if the newest is damaged.
    """

    folder: Path
    keep: int

    def __post_init__(self) -> None:
        private(self.folder)

    def before(self, number: int) -> dict[Slot, dict[str, State]]:
        """The newest generation before round ``number``; those of it and later ones never were.

        Raises:
            StateError: it is damaged.
        """
        for late, path in self._rounds().items():
            if late >= number:
                path.unlink()
        return self.after(number - 1)

    def after(self, number: int) -> dict[Slot, dict[str, State]]:
        """What slots held after round ``number``: the newest generation up to it.

        Raises:
            StateError: it is damaged.
        """
        found = {r: path for r, path in self._rounds().items() if r <= number}
        if not found:
            return {}
        path = found[max(found)]
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != path.name[-76:-12]:
            raise StateError(f"{path.name} is corrupt", where=str(path), why="its SHA-256 is another", fix="remove it")
        slots: dict[Slot, dict[str, Tensor]] = {}
        for key, x in load(data).items():
            slots.setdefault(slot_of(key), {})[key] = x
        return {slot: dict(kept_of(tensors)) for slot, tensors in slots.items()}

    def write(self, number: int, kept: InMemory) -> None:
        """The generation of a round; the oldest ones go."""
        data = save({key: x.contiguous() for key, x in kept.tensors().items()})
        name = f"round-{number:06d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        write_atomic(self.folder / name, data)
        found = self._rounds()
        for old in sorted(found)[: -self.keep]:
            found[old].unlink()

    def _rounds(self) -> dict[int, Path]:
        return {int(m[1]): path for path in self.folder.iterdir() if (m := NAME.fullmatch(path.name))}


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
                case "share" | "mask" | "open":
                    said = self._phase(asked, data)
                case _:
                    said = self._train(read(asked, Train), asked.blocks)
        except QuorumError as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            said = parcel(Refused(why="too few clients to hide among"))
        except (FedquiltError, OSError) as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            unread = isinstance(error, StateError) and error.where == "message"
            said = parcel(Refused(why="an unreadable message" if unread else "an error of its own"))
        return said.pack()

    @property
    def _most(self) -> int:
        """Bytes of the largest message: every slot's whole adapter, or as many clients' keys as a head can name."""
        return 2 * HEAD + len(self.engine.view.slots) * message.size(self.leaves)

    def _hello(self, hello: Hello) -> Parcel:
        if other := self._other(hello.pins):
            return parcel(Refused(why=other))
        counts = [(number, self.engine.roster(number).get(self.client, 0)) for number in range(1, self.rounds + 1)]
        changes = [entry for i, entry in enumerate(counts) if not i or entry[1] != counts[i - 1][1]]
        if self.engine.client.summed:  # sums tell how many examples there are in all, and nobody's
            return parcel(Present(client=self.client, slots=changes, samples=[]))
        samples = [self.engine.view.data(slot, self.rounds).samples for slot in sorted(self.engine.view.slots)]
        return parcel(Present(client=self.client, slots=changes, samples=samples))

    def _other(self, pins: Pins) -> Literal["another configuration", "another base model", "another adapter layout"] | None:
        if pins.config != self.pins.config:
            return "another configuration"
        if pins.base != self.pins.base:
            return "another base model"
        return None if pins.layout == self.pins.layout else "another adapter layout"

    def _train(self, train: Train, blocks: tuple[bytes, ...]) -> Parcel:
        if train.pins != self.pins.all:
            return parcel(Refused(why="another configuration"))
        if len(train.asks) != len(blocks) or len({ask.slot for ask in train.asks}) != len(train.asks):
            raise StateError("a train message with other blocks than slots", where="message")
        if (train.clients > 0) != self.engine.client.summed:
            raise StateError("a train message that does not say how many clients add up, or says it in vain", where="message")
        generations = Generations(self.folder / train.run, self.keep)
        if not self._same(generations.folder):
            return parcel(Refused(why="other data than before"))
        before = generations.before(train.round)
        now, kept, jobs, undone = Round(train.round, self.seed), InMemory(), [], []
        for slot, state in before.items():
            kept.put(slot, state)
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
        replies = self._trained(jobs, kept)
        generations.write(train.round, kept)
        return (self._ready if self.engine.client.summed else self._reply)(train, replies, undone)

    def _ready(self, train: Train, replies: list[Reply], undone: list[Undone]) -> Parcel:
        """Keep what would have been sent until the others are ready, too."""
        from fedquilt.deploy.summing import Party  # here, for not everybody has cryptography

        layout = self.engine.client.layout(self.leaves, Round(train.round, self.seed))
        try:
            words = layout.words([(0, reply) for reply in replies], train.clients)
        except ValueError as error:
            raise StateError("these changes cannot be added", where="update", why=str(error), fix="lower method.lr") from error
        self.party = Party(self.client, train.run, train.round, words, train.clients)
        return parcel(Ready(run=train.run, round=train.round, undone=undone), (self.party.keys(),))

    def _phase(self, asked: Parcel, data: bytes) -> Parcel:
        """A phase of the sum; the same again if it is asked the same again, for its answer may have been lost on the way."""
        if self.party is None:
            raise StateError("a phase of a sum that was not begun here", where="update", why="the worker is another one by now")
        if self.answered[0] != data:
            self.answered = data, self.party.answer(asked)
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
        if len(judge.slots) != len(blocks) or len(set(judge.slots)) != len(judge.slots):
            raise StateError("a judge message with other blocks than slots", where="message")
        kept, now = Generations(self.folder / judge.run, self.keep).after(judge.round), max(1, judge.round)
        there, scores = self.engine.roster(now).get(self.client, 0), []
        for number, block in zip(judge.slots, blocks, strict=True):
            slot = Slot(self.client, number)
            if number >= there:
                continue
            state = tree.merge(message.decode(block, self.leaves), kept.get(slot, {}).get("private", {}))
            for part, (name, rows) in enumerate(self.engine.view.data(slot, now).parts):
                found = self.evaluator.of(state, name)
                metrics = {key: value if abs(value) <= MOST else None for key, value in found.items()}
                scores.append(Score.model_validate({"slot": number, "part": part, "metrics": metrics, "samples": len(rows)}))
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
        shared, blocks, done = set(self.engine.client.share(Round(train.round, self.seed))), [], []
        leaves = [leaf for leaf in self.leaves if leaf.name in shared]
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


def private(folder: Path) -> None:
    """A folder that only its owner may open: it holds what was learnt from private data."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
