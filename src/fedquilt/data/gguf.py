"""Read a GGUF file: metadata, and tensors as float32. Only the types of the one model that is shipped so: F32, Q8_0 and Q4_1.

The layout is the specification's (ggml, docs/gguf.md): little-endian, magic, counts, key-value pairs, tensor descriptions, then the
tensors' data at offsets from the next multiple of ``general.alignment``. Blocks of 32 numbers:

    Q8_0: scale d (float16), 32 int8 q             x = d q
    Q4_1: scale d, minimum m (float16), 16 bytes    x = d q + m, low nibbles are numbers 0 to 15, high ones 16 to 31
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedquilt.errors import DataError

F32, Q4_1, Q8_0 = 0, 3, 8
_BLOCKS = {
    Q8_0: np.dtype([("d", "<f2"), ("q", "i1", 32)]),
    Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]),
}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Gguf:
    """A file in memory: ``meta`` holds the key-value pairs, ``places`` of each tensor its shape, type and position."""

    data: bytes
    meta: Mapping[str, Any]
    places: Mapping[str, tuple[tuple[int, ...], int, int]]

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, rows first (the file counts its sides the other way round).

        Raises:
            DataError: it has a type that is not read here.
        """
        shape, kind, start = self.places[name]
        size = math.prod(shape)
        if kind == F32:
            return np.frombuffer(self.data, "<f4", size, start).reshape(shape)
        if kind not in _BLOCKS:
            raise DataError(f"tensor {name} has the GGUF type {kind}", where="GGUF file", fix="only F32, Q8_0 and Q4_1 are read")
        blocks = np.frombuffer(self.data, _BLOCKS[kind], size // 32, start)
        return (_q8(blocks) if kind == Q8_0 else _q4(blocks)).reshape(shape)


def _q8(blocks: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = blocks["d"].astype(np.float32)[:, None] * blocks["q"].astype(np.float32)
    return found


def _q4(blocks: NDArray[Any]) -> NDArray[np.float32]:
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
    found: NDArray[np.float32] = blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]
    return found


def read(data: bytes) -> Gguf:
    """Metadata and the places of all tensors.

    Raises:
        DataError: no GGUF file of version 2 or 3, or it ends early.
    """
    cursor = _Cursor(data)
    try:
        magic, version = data[:4], cursor.skip(4).scalar("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise DataError("this is no GGUF file of version 2 or 3", where="GGUF file")
        tensors, pairs = cursor.scalar("Q"), cursor.scalar("Q")
        meta = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(pairs)}
        described = [(cursor.string(), cursor.shape(), cursor.scalar("I"), cursor.scalar("Q")) for _ in range(tensors)]
    except struct.error as error:
        raise DataError("the GGUF file ends early", where="GGUF file", why=str(error)) from error
    alignment = int(meta.get("general.alignment", 32))
    begin = -(-cursor.at // alignment) * alignment
    return Gguf(data, meta, {name: (shape, kind, begin + offset) for name, shape, kind, offset in described})


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def skip(self, n: int) -> _Cursor:
        self.at += n
        return self

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def shape(self) -> tuple[int, ...]:
        return tuple(self.scalar("Q") for _ in range(self.scalar("I")))[::-1]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, length = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(length)]
        return self.scalar(_SCALARS[kind])
