"""Attention of rows that stand one after the other without padding, three ways with one result.

On a CPU rows of equal length go through attention together: no padding, no mask, one call per length. On a GPU calls cost more
than padding does, so there all rows go through one call: padded for attention alone behind a mask, or, where the frozen maps are
in bfloat16, through flash attention for ragged rows, which needs neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.models.attention_dropout import Layout, attend, layout
from fedquilt.models.dropout import SeededDropout, attention_keys
from fedquilt.models.prompts import Prefix

Heads = list[Tensor]  # queries, keys, values, each [n, heads, L, d]


@dataclass(frozen=True)
class Rows:
    """Where the rows of a pass stand. ``lengths [n]``, ascending, on the host; ``device``: where the tokens are."""

    lengths: Tensor
    device: torch.device
    _layouts: dict[int, Layout] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """(rows, length) of each run of equal length."""
        lengths, counts = torch.unique_consecutive(self.lengths, return_counts=True)
        return list(zip(counts.tolist(), lengths.tolist(), strict=True))

    @property
    def longest(self) -> int:
        """Tokens of the last row."""
        return int(self.lengths[-1])

    def layout(self, heads: int, keys: Tensor) -> Layout:
        """For attention with dropout; ``keys [n]`` are the rows' in this pass, the same for all layers."""
        if heads not in self._layouts:
            self._layouts[heads] = layout(self.groups, heads, keys)
        return self._layouts[heads]

    @cached_property
    def first(self) -> Tensor:
        """Every row's first token ``[n]``, on the host."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def place(self) -> Tensor:
        """Every token's position in its row ``[T]``, on the host."""
        return torch.arange(int(self.lengths.sum())) - torch.repeat_interleave(self.first, self.lengths)

    @cached_property
    def padded(self) -> Tensor:
        """Every token's place ``[T]`` among n times longest."""
        row = torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)
        return tree.there(row * self.longest + self.place, self.device)

    @cached_property
    def present(self) -> Tensor:
        """Which of the padded keys are tokens ``[n, longest]``."""
        return tree.there(torch.arange(self.longest) < self.lengths[:, None], self.device)

    @cached_property
    def ends(self) -> Tensor:
        """0 and where each row ends ``[n + 1]`` int32."""
        return tree.there(F.pad(torch.cumsum(self.lengths, 0), (1, 0)).int(), self.device)

    @cached_property
    def singles(self) -> Tensor:
        """The same for rows of one token."""
        return tree.there(torch.arange(len(self.lengths) + 1, dtype=torch.int32), self.device)


@dataclass(frozen=True)
class Attention:
    """Softmax attention of one layer.

    Attributes:
        scale: of the scores.
        keys: ``[n]`` seeds of the rows' dropout masks; None: no dropout.
        prefix: keys and values that stand before every row's own, in layer ``layer``.
    """

    scale: float
    causal: bool = False
    dropout: SeededDropout | None = None
    keys: Tensor | None = None
    prefix: Prefix | None = None
    layer: int = 0

    @property
    def plain(self) -> bool:
        """Nothing but attention."""
        return self.prefix is None and self.keys is None

    def by_length(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, *, first_only: bool = False) -> Tensor:
        """One call per length. ``q [T, heads, d]`` (``first_only``: ``[n, heads, d]``), ``k, v [T, key heads, d]``; returns
        ``[T, heads d]`` or ``[n, heads d]``.

        ``split``, not slices: slicing makes autograd fill a full-size zero tensor per group, which was 74 % of a step.
        """
        whole = not (first_only or self.causal or self.prefix) and q.shape == k.shape and q.device.type == "cpu"
        if whole and self.dropout is not None and self.keys is not None:
            return attend(q, k, v, self.scale, self.dropout, rows.layout(q.shape[1], self.keys))
        sizes = [count * length for count, length in rows.groups]
        asked = [count for count, _ in rows.groups] if first_only else sizes
        out, done = [], 0
        for query, key, value, (count, _) in zip(q.split(asked), k.split(sizes), v.split(sizes), rows.groups, strict=True):
            heads = [x.view(count, -1, *x.shape[1:]).transpose(1, 2) for x in (query, key, value)]
            out.append(self(heads, slice(done, done + count)).transpose(1, 2).reshape(len(query), -1))
            done += count
        return torch.cat(out)

    def in_one(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, *, first_only: bool = False) -> Tensor:
        """One call for all rows, padded; shapes as in :meth:`by_length`."""
        n, longest = len(rows.lengths), rows.longest

        def padded(x: Tensor) -> Tensor:
            out: Tensor = Spread.apply(x, rows.padded, n * longest)  # type: ignore[no-untyped-call]
            return out.view(n, longest, *x.shape[1:]).transpose(1, 2)

        query = q[:, :, None] if first_only else padded(q)
        out = self([query, padded(k), padded(v)], present=rows.present).transpose(1, 2).flatten(2).flatten(0, 1)
        collected: Tensor = out if first_only else Collect.apply(out, rows.padded)  # type: ignore[no-untyped-call]
        return collected

    def flash(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, *, first_only: bool = False) -> Tensor:
        """One call for all rows, ragged, in bfloat16; shapes as in :meth:`by_length`; only if :attr:`plain`."""
        from torch.nn.attention.varlen import varlen_attn

        asked, most = (rows.singles, 1) if first_only else (rows.ends, rows.longest)
        window = (-1, 0) if self.causal else (-1, -1)
        query, key, value = (x.to(torch.bfloat16) for x in (q, k, v))
        shared = q.shape[1] > k.shape[1]
        out: Any = varlen_attn(
            query, key, value, asked, rows.ends, most, rows.longest, scale=self.scale, window_size=window, enable_gqa=shared
        )
        flat: Tensor = out.to(q.dtype).flatten(1)
        return flat

    def __call__(self, heads: Heads, rows: slice = slice(None), present: Tensor | None = None) -> Tensor:
        """Of rows padded to one length ``[n, heads, L, d]``. ``rows``: which of the pass they are; ``present [n, L]``: keys that
        are tokens; None: all."""
        (q, k, v), words = heads, heads[1].shape[2]
        if self.prefix is not None:
            k, v = self.prefix.before(self.layer, (k, v), rows)
        if k.shape[1] < q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        dropout = None if self.keys is None else self.dropout
        if self.causal and self.plain and present is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        seen = self._seen(q, words, k.shape[2] - words, present)
        if dropout is None or self.keys is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        scores = q @ k.transpose(2, 3) * self.scale
        weights = torch.softmax(scores if seen is None else scores.masked_fill(~seen, float("-inf")), dim=-1)
        keys = attention_keys(self.keys[rows], q.shape[1], q.shape[2])
        out: Tensor = dropout.drop(weights, keys) @ v
        return out

    def _seen(self, q: Tensor, words: int, before: int, present: Tensor | None) -> Tensor | None:
        """Which keys a query sees, ``[n or 1, 1, queries or 1, before + words]``; None: all."""
        seen = None if present is None else F.pad(present, (before, 0), value=True)[:, None, None]
        if not self.causal:
            return seen
        past = torch.ones(q.shape[2], before + words, dtype=torch.bool, device=q.device).tril(before)[None, None]
        return past if seen is None else past & seen


class Spread(torch.autograd.Function):
    """Rows of ``x [T, ...]`` at different places of ``[size, ...]``, zeros elsewhere. Backwards it only picks them out again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(where)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, where, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (where,) = ctx.saved_tensors
        return grad.index_select(0, where), None, None


class Collect(torch.autograd.Function):
    """Different rows of ``x``. Backwards a copy, where ``index_select`` would have to add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.size = x.shape[0]
        return x.index_select(0, where)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, where, grad), None


Way = Callable[..., Tensor]


def way(attention: Attention, rows: Rows, *, half: bool) -> Way:
    """How to compute it on the device of the rows. ``half``: bfloat16 is wanted."""
    if half and attention.plain and rows.device.type == "cuda" and has_flash():
        return attention.flash
    return attention.by_length if rows.device.type == "cpu" or len(rows.groups) == 1 else attention.in_one


@cache
def has_flash() -> bool:
    """Whether this torch has attention for ragged rows with shared key heads."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= set(signature(varlen_attn).parameters)
