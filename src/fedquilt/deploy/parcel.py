"""How messages travel: a few declared values and blocks of bytes, one block per adapter.

On the wire: the length of the head as 8 bytes, little endian; the head, JSON; the blocks one after the other. What may be said is
:mod:`fedquilt.deploy.messages`, what is inside the blocks :mod:`fedquilt.wire.message`. Unknown fields are refused, and nothing is
allocated for a length before it has been held against what is really there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from fedquilt.deploy.messages import Refused, Strict
from fedquilt.errors import StateError

HEAD = 1 << 18  # bytes of the largest head
VERSION = 2  # of the format, and of how clients train: machines that differ in either refuse one another
UNREADABLE = (StateError, ValueError, ArithmeticError, MemoryError, RecursionError)  # what reading a stranger's bytes may raise


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
