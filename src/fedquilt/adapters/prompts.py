"""Families of virtual tokens: prompt tuning, P-tuning and prefix tuning, in peft's conventions and file format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedquilt.adapters.base import Adapter, HeadPolicy, as_dtype, head_leaves, uniform
from fedquilt.errors import ModelError
from fedquilt.models.loading import Base
from fedquilt.models.prompts import EMBEDDING, ENCODER, Prompt, key_heads
from fedquilt.rng import generator
from fedquilt.types import Leaf, Spec

PREFIXED = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "llama", "gpt2")
Tokens = Annotated[int, Field(ge=1)]


def prompt(base: Base, *, seed: int, heads: int = 1, tokens: Tokens = 10, head: HeadPolicy = "federated") -> Adapter:
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691): vectors before the words, at first those of random words.

    They stand before BERT's [CLS] too, as in peft, so a classifier reads the first of them.

    Raises:
        ModelError: a model of images.
    """
    words = _words(base, "prompt tuning").weight
    drawn = torch.randint(len(words), (tokens,), generator=generator(seed, "prompt"))
    start = torch.zeros(tokens, words.shape[1]) if words.is_meta else words.detach()[drawn].clone()
    return _family("prompt", base, Prompt("input", tokens), {EMBEDDING: start}, head, heads)


def p_tuning(
    base: Base,
    *,
    seed: int,
    heads: int = 1,
    tokens: Tokens = 20,
    hidden: Annotated[int, Field(ge=1)] = 128,
    head: HeadPolicy = "federated",
) -> Adapter:
    """P-tuning (Liu et al. 2021, arXiv 2103.10385): a prompt made by an encoder, here peft's of three linear maps.

    Encoder and embedding train, travel and are averaged leaf by leaf; an exported adapter holds the vectors they make. They start
    as torch's layers do: embedding N(0, 1), maps uniform in +-1/sqrt(in).

    Raises:
        ModelError: a model of images.
    """
    width = int(_words(base, "P-tuning").weight.shape[1])
    stream = generator(seed, "p_tuning")
    start = {EMBEDDING: torch.randn(tokens, width, generator=stream, dtype=torch.float64)}
    sides = (width, hidden, hidden, width)
    for (weight, bias), inside, outside in zip(ENCODER, sides[:-1], sides[1:], strict=True):
        for name, shape in ((weight, (outside, inside)), (bias, (outside,))):
            start[name] = uniform(shape, inside, stream)
    return _family("p_tuning", base, Prompt("input", tokens, encoder=True), start, head, heads)


def prefix(base: Base, *, seed: int, heads: int = 1, tokens: Tokens = 8, head: HeadPolicy = "federated") -> Adapter:
    """Prefix tuning (Li, Liang 2021, arXiv 2101.00190), without the encoder: keys and values before those of every layer.

    They start as N(0, 0.02): zeros would have no gradient by which tokens could part. Another model than the base from the start:
    attention has more to look at.

    Raises:
        ModelError: a model of images, or an architecture whose attention is not known to take a prefix (DeBERTa).
    """
    _words(base, "prefix tuning")
    if base.model_type not in PREFIXED:
        why, fix = f"tested with {', '.join(PREFIXED)}", "choose another family, such as prompt or lora"
        raise ModelError(f"no prefix tuning for '{base.model_type}'", where="adapter.family", why=why, fix=fix)
    config = base.model.config
    depth = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = 2 * int(config.num_hidden_layers) * key_heads(config) * int(depth)
    start = 0.02 * torch.randn(tokens, width, generator=generator(seed, "prefix"), dtype=torch.float64)
    return _family("prefix", base, Prompt("prefix", tokens), {EMBEDDING: start}, head, heads)


def _family(family: str, base: Base, made: Prompt, start: Mapping[str, Tensor], head: str, heads: int) -> Adapter:
    leaves = [
        Leaf(name, tuple(x.shape), "bias" if name.endswith(".bias") else "prompt", 0, dtype=base.dtype) for name, x in start.items()
    ]
    more, head_start = head_leaves(base, head, heads, 1)
    init = as_dtype({**start, **head_start}, base.dtype)
    return Adapter(Spec(family, (*leaves, *more), head=head), init, heads=heads, prompt=made)


def _words(base: Base, what: str) -> torch.nn.Embedding:
    if base.transform is not None or base.model_type in ("vit", "dinov2"):
        fix = "choose another family, such as lora"
        raise ModelError(f"no {what} for a model of images", where="adapter.family", why="it has no words", fix=fix)
    words: torch.nn.Embedding = base.model.get_input_embeddings()
    return words
