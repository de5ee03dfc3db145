"""The weights of an ONNX file, without the ``onnx`` package: a reader for the few protobuf fields that hold them.

Wire format: protobuf.dev/programming-guides/encoding. Field numbers: onnx.proto3 of ONNX 1.x (ModelProto.graph = 7; GraphProto.node
= 1, initializer = 5; NodeProto.input = 1, output = 2, op_type = 4; TensorProto.dims = 1, data_type = 2, name = 8, raw_data = 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT = 1  # TensorProto.DataType
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Node:
    """One operation: ``output = op(*inputs)``; a MatMul's anonymous weight is known by what is added to its output."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read(data: bytes) -> tuple[dict[str, NDArray[np.float32]], list[Node]]:
    """All float32 initialisers by name, and the graph's nodes in order. The arrays are views of ``data``.

    Raises:
        ValueError: this is no ONNX file, or it is cut.
    """
    try:
        graph = next(value for number, value in _fields(memoryview(data)) if number == 7)
        tensors: dict[str, NDArray[np.float32]] = {}
        nodes = []
        for number, value in _fields(graph):
            if number == 5:
                tensors |= _tensor(value)
            elif number == 1:
                nodes.append(_node(value))
    except (StopIteration, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not an ONNX model: {error!r}") from error
    return tensors, nodes


def matmul_weights(nodes: list[Node]) -> dict[str, str]:
    """Bias -> weight of every linear map that was exported as MatMul and Add: ``x @ weight + bias``."""
    products = {node.outputs[0]: node.inputs for node in nodes if node.op == "MatMul"}
    out = {}
    for node in nodes:
        if node.op == "Add":
            for bias, product in (node.inputs, node.inputs[::-1]):
                if product in products:
                    out[bias] = products[product][1]
    return out


def _tensor(buffer: memoryview) -> dict[str, NDArray[np.float32]]:
    shape: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in _fields(buffer):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
    if kind != FLOAT or not len(raw):
        return {}
    return {name: np.frombuffer(raw, "<f4").reshape(shape)}


def _node(buffer: memoryview) -> Node:
    inputs, outputs, op = [], [], ""
    for number, value in _fields(buffer):
        if number == 1:
            inputs.append(bytes(value).decode())
        elif number == 2:
            outputs.append(bytes(value).decode())
        elif number == 4:
            op = bytes(value).decode()
    return Node(op, tuple(inputs), tuple(outputs))


def _fields(buffer: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: an int, or the bytes of a string, message or packed list."""
    at = 0
    while at < len(buffer):
        tag, at = _varint(buffer, at)
        wire = tag & 7
        size = {_EIGHT: 8, _FOUR: 4}.get(wire, 0)
        if wire == _VARINT:
            value, at = _varint(buffer, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(buffer, at)
        elif not size:
            raise ValueError(f"not an ONNX model: wire type {wire}")
        if at + size > len(buffer):
            raise ValueError(f"not an ONNX model: a field of {size} bytes runs over its end")
        yield tag >> 3, buffer[at : at + size]
        at += size


def _varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _packed(buffer: memoryview) -> list[int]:
    out, at = [], 0
    while at < len(buffer):
        value, at = _varint(buffer, at)
        out.append(value)
    return out
