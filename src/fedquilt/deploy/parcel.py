"""What travels between a server and a client: a few declared values and blocks of bytes, one block per adapter.

On the wire: the length of the head as 8 bytes, little endian; the head, JSON; the blocks one after the other. What is inside the
blocks is :mod:`fedquilt.wire.message`. There is no field in which a task name, a label or a raw example could travel: what a client
says is numbers and words of a fixed list. Unknown fields are refused, and nothing is allocated for a length before it has been held
against what is really there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedquilt.data.kinds import Metric
from fedquilt.errors import StateError

HEAD = 1 << 18  # bytes of the largest head
VERSION = 1
SLOTS = 1000  # of one client, at most
MOST_EFFORT = 1000.0
MOST = 1e9  # of a loss or a metric
MOST_SAMPLES = 10**9
MOST_FINGERPRINT = 10**7  # numbers
PARTS = 100  # tasks in one slot
UNREADABLE = (StateError, ValueError, ArithmeticError, MemoryError, RecursionError)  # what reading a stranger's bytes may raise
RUN = r"^[0-9a-f]{32}$"


@dataclass(frozen=True)
class Parcel:
    """One message.

    Attributes:
        kind: of what is said; see the models below.
        said: JSON.
    """

    kind: str
    said: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[bytes, ...] = ()

    def pack(self) -> bytes:
        """As bytes."""
        head = {"version": VERSION, "kind": self.kind, "said": self.said, "blocks": [len(block) for block in self.blocks]}
        text = json.dumps(head, separators=(",", ":")).encode()
        return b"".join((len(text).to_bytes(8, "little"), text, *self.blocks))


class Strict(BaseModel):
    """No unknown fields, no values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Pins(Strict):
    """Digests of what both sides must have the same of.

    Attributes:
        config: of the resolved configuration without what only one machine knows.
        base: of the base model's weights, its own configuration, and its tokenizer or image transform.
        layout: of the adapter's leaves.
    """

    config: str
    base: str
    layout: str

    @property
    def all(self) -> str:
        """All of them in one, for the messages after the first."""
        return hashlib.sha256(" ".join((self.config, self.base, self.layout)).encode()).hexdigest()


class Hello(Strict):
    """Server to client, first: what it runs."""

    pins: Pins


class Present(Strict):
    """The answer: who is there. ``slots``: (round from which on, number of slots); ``samples``: training examples of each."""

    client: int = Field(ge=0, lt=1 << 31)
    slots: list[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0, le=SLOTS)]]] = Field(max_length=SLOTS)
    samples: list[Annotated[int, Field(ge=0, le=MOST_SAMPLES)]] = Field(max_length=SLOTS)


class Ask(Strict):
    """One slot's job. ``leaves``: which of the adapter's, in the order of their names; None: all.

    ``new``: whether the slot is a newcomer, of which some methods want a look at its data.
    """

    slot: int = Field(ge=0)
    leaves: list[int] | None
    since: int = Field(ge=0)
    effort: float = Field(gt=0, le=MOST_EFFORT, allow_inf_nan=False)
    new: bool


class Train(Strict):
    """Server to client, every round: a block per ask, empty where nothing has changed.

    ``run``: drawn when a run begins; a client keeps the state of every run apart. ``clients``: how many are asked in this round,
    where they add up among themselves.
    """

    run: str = Field(pattern=RUN)
    pins: str
    round: int = Field(ge=1)
    asks: list[Ask]
    clients: int = Field(0, ge=0)


class Done(Strict):
    """One slot's reply: a block for its change, one for its fingerprint if it has one. ``loss``: None if it is no number."""

    slot: int = Field(ge=0)
    weight: float
    loss: Annotated[float, Field(ge=-MOST, le=MOST)] | None
    fingerprint: int = Field(ge=0, le=MOST_FINGERPRINT)


class Undone(Strict):
    """Why there is none."""

    slot: int = Field(ge=0)
    code: Literal["behind", "refused"]


class Trained(Strict):
    """Client to server."""

    run: str = Field(pattern=RUN)
    round: int = Field(ge=1)
    done: list[Done] = Field(max_length=SLOTS)
    undone: list[Undone] = Field(max_length=SLOTS)


class Phase(Strict):
    """What all messages of a sum say: which one it is. ``clients``: whose blocks these are, or who is meant; see
    :mod:`fedquilt.deploy.summing`."""

    run: str = Field(pattern=RUN)
    round: int = Field(ge=1)
    clients: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)


class Ready(Phase):
    """Client to server, instead of its changes: it has trained; its public keys."""

    undone: list[Undone] = Field(max_length=SLOTS)


class Share(Phase):
    """Server to client: everybody's public keys."""


class Shared(Phase):
    """Client to server: for everybody else the shares of its secrets, encrypted."""


class Mask(Phase):
    """Server to client: the shares that everybody else made for it."""


class Masked(Phase):
    """Client to server: its vector behind masks."""


class Open(Phase):
    """Server to client: whose vectors have arrived."""


class Opened(Phase):
    """Client to server: its shares of what is behind their own masks, and behind the pair masks of the others."""


class Judge(Strict):
    """Server to client, where nobody else has data to evaluate on: a block per slot, the adapter after round ``round``."""

    run: str = Field(pattern=RUN)
    pins: str
    round: int = Field(ge=0)
    slots: list[Annotated[int, Field(ge=0)]]


class Score(Strict):
    """A slot's adapter on one of its tasks: the name of a metric -> its value, None if it is no number. ``part``: which task, in an
    order that only the client knows."""

    slot: int = Field(ge=0)
    part: int = Field(ge=0, lt=PARTS)
    metrics: dict[Metric, Annotated[float, Field(ge=-MOST, le=MOST)] | None] = Field(min_length=1)
    samples: int = Field(ge=0, le=MOST_SAMPLES)


class Judged(Strict):
    """Client to server."""

    run: str = Field(pattern=RUN)
    round: int = Field(ge=0)
    scores: list[Score] = Field(max_length=2 * SLOTS)


class Refused(Strict):
    """A client that does nothing, and why: a word of a list, for free text could tell of its data. Its own log says more."""

    why: Literal[
        "another configuration",
        "another base model",
        "another adapter layout",
        "other data than before",
        "too few clients to hide among",
        "an unreadable message",
        "an error of its own",
    ]


Said = TypeVar("Said", bound=Strict)


def parcel(said: Strict, blocks: tuple[bytes, ...] = ()) -> Parcel:
    """A message of one of the kinds above."""
    return Parcel(type(said).__name__.lower(), said.model_dump(exclude_unset=True), blocks)


def read(found: Parcel, kind: type[Said]) -> Said:
    """What a message says, if it is of that kind.

    Raises:
        StateError: another kind, or other fields.
    """
    if found.kind != kind.__name__.lower():
        raise StateError(f"a message of kind '{found.kind[:40]}' where '{kind.__name__.lower()}' was expected", where="message")
    try:
        return kind.model_validate_json(json.dumps(found.said))  # as JSON: lists may become tuples, numbers no words
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StateError(f"a '{found.kind}' message has a wrong '{place}'", where="message", why=str(first["msg"])) from error


def unpack(data: bytes, most: int) -> Parcel:
    """The inverse of :meth:`Parcel.pack`.

    Args:
        most: bytes that a message of the expected kind can have.

    Raises:
        StateError: too large, or no such message.
    """
    if len(data) > most:
        raise StateError(f"a message of {len(data):,} bytes", where="message", why=f"at most {most:,} can be meant")
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(HEAD, len(data) - 8):
        raise StateError("a message whose head is cut off", where="message")
    try:
        head = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise StateError("a message whose head is no JSON", where="message", why=str(error)) from error
    if not isinstance(head, dict) or set(head) != {"version", "kind", "said", "blocks"}:
        raise StateError("a message with another head", where="message", fix="use the same version of fedquilt everywhere")
    version, kind, said, lengths = (head[name] for name in ("version", "kind", "said", "blocks"))
    if version != VERSION:
        fix = "use the same version of fedquilt everywhere"
        raise StateError(f"a message of version {str(version)[:20]}, want {VERSION}", where="message", fix=fix)
    if not isinstance(kind, str) or not isinstance(said, dict) or not isinstance(lengths, list):
        raise StateError("a message with another head", where="message")
    if any(type(length) is not int or length < 0 for length in lengths) or sum(lengths) != len(data) - 8 - size:
        raise StateError("a message whose blocks do not fill it", where="message")
    blocks, at = [], 8 + size
    for length in lengths:
        blocks.append(data[at : at + length])
        at += length
    return Parcel(kind, said, tuple(blocks))


class Away(Exception):
    """There is no answer. ``code``: lost or refused; ``why``: safe to show."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, plain(why)


def heard(data: bytes | str, most: int) -> Parcel:
    """What a client answered, or why the transport has no answer of it.

    Raises:
        Away: it did not answer, or refused to.
        StateError: no such message.
    """
    if isinstance(data, str):
        raise Away("lost", data)
    answer = unpack(data, most)
    if answer.kind == "refused":
        raise Away("refused", read(answer, Refused).why)
    return answer


def what_of(error: BaseException) -> str:
    """What is wrong with a stranger's message, safe to show; of :data:`UNREADABLE`."""
    return plain(error.what if isinstance(error, StateError) else f"an unreadable message: {type(error).__name__}")


def plain(text: str, most: int = 300) -> str:
    """What somebody else wrote, safe to show and to write: no control characters, and not much of it."""
    return "".join(x if x.isprintable() else "?" for x in text[:most])
