"""The bytes that travel: the numbers of some leaves as one array per dtype, and a digest of what they are.

A safetensors file whose header names no leaf: both sides know which leaves travel in a round, in which order and shape, so only a
digest of that is sent along and checked. A header with a line per tensor would be a tenth of a tensor train's message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from fedquilt.errors import StateError
from fedquilt.types import Leaf, State

# In the order in which the format stores them.
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
LAYOUT = "layout"


def encode(leaves: Sequence[Leaf], state: State) -> bytes:
    """The message; leaves in the order of their names, whatever the order given."""
    groups = _by_dtype(leaves)
    arrays = (torch.cat([state[leaf.name].detach().reshape(-1) for leaf in group]) for group in groups.values())
    return b"".join((_head(leaves), *(x.cpu().view(torch.uint8).numpy().tobytes() for x in arrays)))


def decode(data: bytes, leaves: Sequence[Leaf]) -> dict[str, Tensor]:
    """The tensors of a message that was expected to hold these leaves.

    What it must begin with is known, so nothing of what somebody else wrote is parsed.

    Raises:
        StateError: no message, or one of other leaves.
    """
    head = _head(leaves)
    if len(data) != (want := len(head) + _numbers(leaves)):
        raise StateError(f"a message of {len(data):,} bytes, want {want:,}", where="message")
    if data[: len(head)] != head:
        raise StateError(
            "a message holds other leaves than this round's", where="message", fix="use the same model and configuration"
        )
    out, at = {}, len(head)
    for dtype, group in _by_dtype(leaves).items():
        count = sum(leaf.size for leaf in group)
        array = (
            torch.frombuffer(bytearray(data[at : at + count * dtype.itemsize]), dtype=dtype)
            if count
            else torch.zeros(0, dtype=dtype)
        )
        parts = array.split([leaf.size for leaf in group])
        out.update({leaf.name: part.reshape(leaf.shape) for leaf, part in zip(group, parts, strict=True)})
        at += count * dtype.itemsize
    return dict(sorted(out.items()))


def layout(leaves: Sequence[Leaf]) -> str:
    """blake2b over names, shapes and dtypes in the order of names."""
    lines = [f"{leaf.name} {leaf.shape} {NAMES[leaf.dtype]}\n" for leaf in sorted(leaves, key=lambda leaf: leaf.name)]
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def size(leaves: Sequence[Leaf]) -> int:
    """Bytes of the message, without making it."""
    return len(_head(leaves)) + _numbers(leaves)


def fingerprint(numbers: int) -> Leaf:
    """What newcomers may send of their data, as the one leaf of a message of its own."""
    return Leaf("fingerprint", (numbers,), "fingerprint", 0)


def _numbers(leaves: Sequence[Leaf]) -> int:
    """Bytes after the head."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _head(leaves: Sequence[Leaf]) -> bytes:
    """What a safetensors file with these arrays begins with."""
    header: dict[str, object] = {"__metadata__": {LAYOUT: layout(leaves)}}
    offset = 0
    for dtype, group in _by_dtype(leaves).items():
        count = sum(leaf.size for leaf in group)
        end = offset + count * dtype.itemsize
        header[NAMES[dtype]] = {"dtype": NAMES[dtype], "shape": [count], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _by_dtype(leaves: Sequence[Leaf]) -> dict[torch.dtype, list[Leaf]]:
    """Leaves in the order of their names, apart by dtype in the format's order."""
    ordered = sorted(leaves, key=lambda leaf: leaf.name)
    groups = {dtype: [leaf for leaf in ordered if leaf.dtype == dtype] for dtype in NAMES}
    return {dtype: group for dtype, group in groups.items() if group}
