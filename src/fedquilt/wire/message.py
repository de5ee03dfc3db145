"""The bytes that travel: the numbers of some leaves as one array per dtype, and a digest of what they are.

A safetensors file whose header names no leaf: both sides know which leaves travel in a round, in which order and shape, so only a
digest of that is sent along and checked. A header with a line per tensor would be a tenth of a tensor train's message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedquilt.errors import StateError
from fedquilt.types import Leaf, State

# In the order in which the format stores them.
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
LAYOUT = "layout"


def encode(leaves: Sequence[Leaf], state: State) -> bytes:
    """The message; leaves in the order of their names, whatever the order given."""
    arrays = {}
    for dtype, group in _by_dtype(leaves).items():
        arrays[NAMES[dtype]] = torch.cat([state[leaf.name].detach().reshape(-1) for leaf in group])
    return save(arrays, metadata={LAYOUT: layout(leaves)})


def decode(data: bytes, leaves: Sequence[Leaf]) -> dict[str, Tensor]:
    """The tensors of a message that was expected to hold these leaves.

    Raises:
        StateError: no message, or one of other leaves.
    """
    size = int.from_bytes(data[:8], "little")
    try:
        found = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(LAYOUT)
        arrays = load(data)
    except (ValueError, AttributeError, SafetensorError) as error:
        raise StateError("a message cannot be read", where="message", why=str(error)) from error
    if found != layout(leaves):
        raise StateError(
            "a message holds other leaves than this round's", where="message", fix="use the same model and configuration"
        )
    out = {}
    for dtype, group in _by_dtype(leaves).items():
        array = arrays.get(NAMES[dtype], torch.zeros(0))
        if array.dtype != dtype or array.shape != (sum(leaf.size for leaf in group),):
            raise StateError(f"a message with {tuple(array.shape)} numbers of {array.dtype}", where="message")
        parts = array.split([leaf.size for leaf in group])
        out.update({leaf.name: part.reshape(leaf.shape) for leaf, part in zip(group, parts, strict=True)})
    return dict(sorted(out.items()))


def layout(leaves: Sequence[Leaf]) -> str:
    """blake2b over names, shapes and dtypes in the order of names."""
    lines = [f"{leaf.name} {leaf.shape} {NAMES[leaf.dtype]}\n" for leaf in sorted(leaves, key=lambda leaf: leaf.name)]
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def size(leaves: Sequence[Leaf]) -> int:
    """Bytes of the message, without making it."""
    header: dict[str, object] = {"__metadata__": {LAYOUT: "0" * 32}}
    offset = 0
    for dtype, group in _by_dtype(leaves).items():
        count = sum(leaf.size for leaf in group)
        end = offset + count * dtype.itemsize
        header[NAMES[dtype]] = {"dtype": NAMES[dtype], "shape": [count], "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + (text + 7) // 8 * 8 + offset


def _by_dtype(leaves: Sequence[Leaf]) -> dict[torch.dtype, list[Leaf]]:
    """Leaves in the order of their names, apart by dtype in the format's order."""
    ordered = sorted(leaves, key=lambda leaf: leaf.name)
    groups = {dtype: [leaf for leaf in ordered if leaf.dtype == dtype] for dtype in NAMES}
    return {dtype: group for dtype, group in groups.items() if group}
