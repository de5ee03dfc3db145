"""A sum by messages, each half of :mod:`fedquilt.privacy.secagg`: who has trained says its keys, then three more phases.

    ready                the client's keys; a block of 96 bytes
    share  -> shared     everybody's keys, a block each, in the order of ``clients``; shares for everybody else in that order
    mask   -> masked     shares from ``clients``, a block each; the masked vector, 8 bytes a number
    open   -> opened     nothing; for every client that shared, in order, a share of 33 bytes: of its seed if it is one of
                         ``clients``, whose vectors arrived, or of its key

A client that does not answer a phase, or answers it with something else, is not in the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedquilt.deploy.messages import Mask, Masked, Open, Opened, Phase, Ready, Share, Shared
from fedquilt.deploy.parcel import HEAD, UNREADABLE, Away, Parcel, heard, parcel, read, what_of
from fedquilt.errors import QuorumError, StateError
from fedquilt.privacy import secagg
from fedquilt.privacy.fixed import Words
from fedquilt.privacy.secagg import Keys, SecureAggregationError
from fedquilt.privacy.sums import KEYS, SEALED, SHARE, least


class Which(NamedTuple):
    """One sum of a run: the changes of a round (step 0), or a question of it."""

    run: str
    round: int
    step: int = 0

    @property
    def session(self) -> bytes:
        """What keys are derived for."""
        return f"{self.run} {self.round} {self.step}".encode()


class Openings:
    """With whom a client has let each of its vectors be summed: a line per vector, its SHA-256 and the clients.

    The same vector in two sums, of which one client is in one alone, would tell that client's: a server that asks a round again,
    after a crash or because it lies, may ask the same people only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def allow(self, words: Words, clients: Sequence[int]) -> None:
        """Note that this vector is summed with those of these clients.

        Raises:
            StateError: it was summed with others before.
        """
        digest, now = hashlib.sha256(words.tobytes()).hexdigest(), [*clients]
        lines = self.path.read_text(encoding="ascii").splitlines() if self.path.exists() else []
        before = dict(json.loads(line) for line in lines if line.endswith("]"))  # the last one may be cut off: it was not opened
        if before.get(digest, now) != now:
            what = "these numbers are in another sum already, with other clients: the two would tell somebody's apart"
            raise StateError(what, where="openings", fix="the same clients as before, or a new run")
        if digest not in before:
            with self.path.open("a", encoding="ascii") as handle:
                handle.write(("" if not lines or lines[-1].endswith("]") else "\n") + json.dumps([digest, now]) + "\n")
                handle.flush()
                os.fsync(handle.fileno())


class Party:
    """A client in one sum.

    Args:
        words: its vector.
        clients: how many were asked: what the threshold is made from.
        openings: what it has opened so far.
    """

    def __init__(self, client: int, which: Which, words: Words, clients: int, openings: Openings) -> None:
        self.client, self.which, self.words, self.openings = client, which, words, openings
        self.secrets = secagg.Client(client, which.session, least(clients))
        self.holders: list[int] = []

    def keys(self) -> bytes:
        """What it says when it is ready."""
        return b"".join(self.secrets.keys())

    def answer(self, asked: Parcel) -> Parcel:
        """The answer to a phase.

        Raises:
            StateError: of another round, or blocks that are none.
            QuorumError, SecureAggregationError: what the protocol forbids; nothing was told.
        """
        kinds: dict[str, tuple[type[Phase], Callable[[list[int], tuple[bytes, ...]], Parcel]]] = {
            "share": (Share, self._shared),
            "mask": (Mask, self._masked),
            "open": (Open, self._opened),
        }
        kind, how = kinds[asked.kind]
        said = read(asked, kind)
        if Which(said.run, said.round, said.step) != self.which or said.clients != sorted(set(said.clients)):
            raise StateError("a phase of another sum, or clients out of order", where="message")
        if len(asked.blocks) != (0 if kind is Open else len(said.clients)):
            raise StateError("a phase with other blocks than clients", where="message")
        return how(said.clients, asked.blocks)

    def _shared(self, clients: list[int], blocks: tuple[bytes, ...]) -> Parcel:
        keys = {c: keys_of(block) for c, block in zip(clients, blocks, strict=True)}
        sealed = self.secrets.shares(keys)
        return self._said(Shared, *(sealed[c] for c in clients if c != self.client))

    def _masked(self, clients: list[int], blocks: tuple[bytes, ...]) -> Parcel:
        total = self.secrets.masked(self.words, dict(zip(clients, blocks, strict=True)))
        self.holders = sorted({*clients, self.client})
        return self._said(Masked, total.astype("<u8").tobytes())

    def _opened(self, clients: list[int], blocks: tuple[bytes, ...]) -> Parcel:
        self.openings.allow(self.words, clients)
        opened = self.secrets.unmask(clients)
        both = {**opened.seeds, **opened.keys}
        return self._said(Opened, b"".join(both[c] for c in self.holders))

    def _said(self, kind: type[Phase], *blocks: bytes) -> Parcel:
        return parcel(kind(**self.which._asdict()), blocks)


@dataclass
class Collection:
    """The server in one sum.

    Args:
        tell: messages to clients, and their answers, or why there is none.
        asked: how many clients were.

    Attributes:
        lost: client -> code and reason, of those that fell out.
        sent, came: bytes in blocks, by client.
        why: there is no sum.
    """

    which: Which
    asked: int
    tell: Callable[[Mapping[int, bytes]], Mapping[int, bytes | str]]
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)
    sent: Counter[int] = field(default_factory=Counter)
    came: Counter[int] = field(default_factory=Counter)
    why: str = ""

    def ready(self, answers: Mapping[int, bytes | str]) -> dict[int, tuple[bytes, dict[int, str]]]:
        """Client -> its keys, and its slots that have no part in the sum and why, of those that say that they are ready."""
        found: dict[int, tuple[bytes, dict[int, str]]] = {}
        for client, data in answers.items():
            with self._falling(client):
                answer = heard(data, HEAD)
                ready = read(answer, Ready)
                if Which(ready.run, ready.round, ready.step) != self.which or [*map(len, answer.blocks)] != [KEYS]:
                    raise StateError("an answer of another sum, or without keys", where="message")
                found[client] = answer.blocks[0], {one.slot: str(one.code) for one in ready.undone}
        usable = secagg.sound({client: keys_of(block) for client, (block, _) in found.items()})
        self.lost |= dict.fromkeys(found.keys() - usable.keys(), ("malformed", "public keys that nobody can use"))
        return {client: found[client] for client in usable}

    def total(self, ready: Mapping[int, bytes], size: int) -> tuple[Words, list[int]] | None:
        """The sum of ``size`` numbers and whose it is; ``ready``: client -> what it said when it was ready.

        None: too few were there to the end, or somebody's shares are wrong.
        """
        server = secagg.Server(self.which.session, least(self.asked))
        self.came.update({client: len(block) for client, block in ready.items()})
        try:
            keys = server.collect_keys({c: keys_of(block) for c, block in ready.items()})
            everybody = sorted(ready)
            blocks = [b"".join(keys[c]) for c in everybody]
            sealed = [SEALED] * (len(everybody) - 1)
            shared = self._phase(Share, Shared, dict.fromkeys(everybody, (everybody, blocks)), sealed)
            others = {c: [other for other in everybody if other != c] for c in shared}
            routed = server.route({c: dict(zip(others[c], found, strict=True)) for c, found in shared.items()})
            sharing = sorted(shared)
            mine = {c: ([other for other in sharing if other != c], [*routed[c].values()]) for c in sharing}
            came = self._phase(Mask, Masked, mine, [8 * size])
            masked = {c: np.frombuffer(found[0], dtype="<u8").astype(np.uint64) for c, found in came.items()}
            arrived = sorted(server.enough(came, "sent their upload"))
            opened = self._phase(Open, Opened, dict.fromkeys(arrived, (arrived, [])), [SHARE * len(sharing)])
            found = {c: _opened(block[0], sharing, arrived) for c, block in opened.items()}
            return server.total(masked, found), arrived
        except (QuorumError, SecureAggregationError) as error:
            self.why = error.what
            return None

    def _phase(
        self, asking: type[Phase], answering: type[Phase], said: Mapping[int, tuple[list[int], list[bytes]]], lengths: Sequence[int]
    ) -> dict[int, tuple[bytes, ...]]:
        """Blocks of those who answered, of these lengths."""
        messages = {
            client: parcel(asking(**self.which._asdict(), clients=clients), tuple(blocks)).pack()
            for client, (clients, blocks) in said.items()
        }
        self.sent.update({client: sum(map(len, blocks)) for client, (_, blocks) in said.items()})
        answers, found = self.tell(messages), {}
        for client in sorted(messages):
            with self._falling(client):
                found[client] = self._read(answers[client], answering, lengths)
                self.came[client] += sum(lengths)
        return found

    @contextmanager
    def _falling(self, client: int) -> Iterator[None]:
        """Who says nothing, or something else, falls out."""
        try:
            yield
        except Away as error:
            self.lost[client] = error.code, error.why
        except UNREADABLE as error:
            self.lost[client] = "malformed", what_of(error)

    def _read(self, data: bytes | str, kind: type[Phase], lengths: Sequence[int]) -> tuple[bytes, ...]:
        answer = heard(data, HEAD + sum(lengths))
        said = read(answer, kind)
        if Which(said.run, said.round, said.step) != self.which or [*map(len, answer.blocks)] != [*lengths]:
            raise StateError("an answer of another sum, or blocks of another size", where="message")
        return answer.blocks


def keys_of(block: bytes) -> Keys:
    """A client's public keys.

    Raises:
        StateError: none.
    """
    if len(block) != KEYS:
        raise StateError(f"public keys of {len(block)} bytes, want {KEYS}", where="message")
    third = KEYS // 3
    return Keys(block[:third], block[third : 2 * third], block[2 * third :])


def _opened(block: bytes, sharing: Sequence[int], arrived: Sequence[int]) -> secagg.Opened:
    shares = {c: block[SHARE * i : SHARE * (i + 1)] for i, c in enumerate(sharing)}
    seeds = {c: share for c, share in shares.items() if c in set(arrived)}
    return secagg.Opened(seeds, {c: share for c, share in shares.items() if c not in seeds})
