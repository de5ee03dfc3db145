"""Causal language models: how they are loaded. They have no classification head (``Base.head`` is empty)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedquilt.errors import ModelError, did_you_mean
from fedquilt.models.loading import Base, ModelConfig, finish, locate, reading, tiny_tokenizer, tiny_vocabulary
from fedquilt.models.missing import lacking, refuse
from fedquilt.models.quantised import load_options
from fedquilt.rng import derive

TINY = ("llama", "gpt2")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def load_causal(config: ModelConfig, *, seed: int, root: Path = Path()) -> Base:
    """A frozen causal language model in evaluation mode.

    Raises:
        ModelError: nothing found under the name, weights that lack a part of the model (the output map of one that was saved
            without its head), or ``max_length`` beyond the model's positions.
    """
    kind, _, rest = config.name.partition(":")
    if kind == "tiny":
        model, tokenizer, source = *_tiny(rest, seed), config.name
    else:
        source = locate(config.name, root)
        model, tokenizer = _pretrained(config, source)
    _check_length(config, model)
    add_dropout(model, config.dropout)
    dtype = finish(model, config, keep=())
    return Base(model, tokenizer, config.name, str(model.config.model_type), (), dtype, source)


def _pretrained(config: ModelConfig, where: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with reading(config, "causal language model", "'asset:smollm2', or 'tiny:llama'"):
        tokenizer = AutoTokenizer.from_pretrained(where, revision=config.revision)
        how: dict[str, Any] = {"revision": config.revision, "attn_implementation": "eager", "output_loading_info": True}
        found: Any = AutoModelForCausalLM.from_pretrained(where, **how, **({"dtype": torch.float32} | load_options(config)))
    model, info = found
    refuse(sorted(lacking(info, config.name)), config.name)
    return model, tokenizer


def _check_length(config: ModelConfig, model: Any) -> None:
    most = int(getattr(model.config, "max_position_embeddings", config.max_length))
    if config.max_length > most:
        what = f"max_length = {config.max_length}, but '{config.name}' has {most} positions"
        raise ModelError(what, where="model.max_length", fix=f"at most {most}")


def add_dropout(model: nn.Module, p: float | None) -> None:
    """``p`` for all dropouts. Llama has one, of attention probabilities, and calls it by a number: it gets a module here, which
    the two ways of running the model replace by seeded masks."""
    for module in list(model.modules()):
        own = getattr(module, "attention_dropout", None)
        if isinstance(own, float):
            module.add_module("dropout", nn.Dropout(own))
    for module in model.modules():
        if isinstance(module, nn.Dropout) and p is not None:
            module.p = p


def _tiny(kind: str, seed: int) -> tuple[Any, Any]:
    """A random model of a few thousand parameters for tests: one token a character, knows nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if kind not in TINY:
        raise ModelError(f"unknown tiny language model '{kind}'", where="model.name", fix=did_you_mean(kind, TINY))
    common: dict[str, Any] = {"vocab_size": len(tiny_vocabulary()), "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.2}
    sizes: dict[str, dict[str, Any]] = {
        "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "intermediate_size": 32, "max_position_embeddings": 300, "pad_token_id": 0},
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 300},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "tiny"))
        config = AutoConfig.for_model(kind, **common, **sizes[kind])
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", TEMPLATE
    return model, tokenizer
