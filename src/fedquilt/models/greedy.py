"""Greedy generation with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedquilt.types import Batch

Call = Callable[..., Any]  # a transformers model's forward with keyword arguments


def prompts_of(batch: Batch) -> list[Tensor]:
    """The tokens of every row before its first response token."""
    asked = batch.prompts()
    return list(asked.tokens.split(asked.lengths.tolist()))


@torch.no_grad()
def greedy(call: Call, prompts: Sequence[Tensor], *, max_new: int, end: int, dtype: torch.dtype, shift: int = 0) -> list[list[int]]:
    """The most probable continuation of each prompt, token by token, up to ``max_new`` tokens or the end token (left out).

    ``shift``: position of the first word. Prompts are padded on the left. The mask is built here: transformers builds none for
    attention of our own.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.stack([torch.cat([prompt.new_full((longest - len(prompt),), end), prompt]) for prompt in prompts])
    present = torch.arange(longest) >= longest - torch.tensor([len(prompt) for prompt in prompts])[:, None]
    out: list[list[int]] = [[] for _ in prompts]
    alive = torch.ones(len(prompts), dtype=torch.bool)
    past, new = None, ids
    for step in range(max_new):
        place = (present.long().cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        result = call(
            input_ids=new,
            attention_mask=_mask(present, new.shape[1], dtype),
            position_ids=place + shift,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past, chosen = result.past_key_values, result.logits[:, -1].argmax(1).cpu()
        alive &= chosen != end
        for row in torch.nonzero(alive).flatten().tolist():
            out[row].append(int(chosen[row]))
        if not bool(alive.any()) or step == max_new - 1:
            break
        new, present = chosen[:, None], torch.cat([present, torch.ones(len(prompts), 1, dtype=torch.bool)], 1)
    return out


def _mask(present: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Additive ``[n, 1, queries, keys]``: a query sees the present keys up to itself.

    The lowest number is float32's: transformers' Llama takes its softmax in float32 whatever the dtype, and rows of padding would
    become NaN at minus infinity.
    """
    keys = present.shape[1]
    seen = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
    allowed = seen[None, None] & present[:, None, None]
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(torch.float32).min)
