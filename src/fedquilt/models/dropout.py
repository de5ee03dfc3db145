"""Dropout whose masks depend on (client, slot, round, step, example, module, position) and on nothing else.

``torch.nn.Dropout`` draws from one global stream, so a mask depends on how examples happen to be batched and padded. Here every
scalar's fate is a hash of counters: the same example gets the same mask alone, padded, or packed with other clients' rows, on
any number of threads. The mixing function is the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom
number generators, OOPSLA 2014); one 64-bit word decides four scalars, so p is rounded to 1/65536.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedquilt.models.blocks import blocks

BLOCK = 1 << 15  # words hashed at a time: 256 kB
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_C1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_C2 = -7723592293110705685  # 0x94D049BB133111EB


def mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64."""
    return _mix(z.clone(), torch.empty_like(z))


def _mix(z: Tensor, free: Tensor) -> Tensor:
    """The same in place. torch shifts arithmetically, so the copies of the sign bit are masked away: left in, they would make the
    top bit of every result 0 and a quarter of all scalars immune."""
    for shift, factor in ((30, _C1), (27, _C2), (31, 1)):
        torch.bitwise_right_shift(z, shift, out=free)
        z.bitwise_xor_(free.bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            z.mul_(factor)
    return z


def positions(keys: Tensor, count: Tensor | int) -> Tensor:
    """Keys of tokens: ``keys [...]`` and positions that broadcast with it."""
    return mix(keys + (torch.as_tensor(count) + 1) * _GOLDEN)


def keep(keys: Tensor, width: int, p: float, dtype: torch.dtype) -> Tensor:
    """Mask ``[..., width]`` of 0 and 1/(1-p) for ``keys [...]``; p is rounded to 1/65536."""
    return fates(words(keys, width), p)[..., :width].to(dtype).mul_(scale(p))


def words(keys: Tensor, width: int) -> Tensor:
    """What is hashed for ``keys [...]``: ``[..., width / 4]`` int64, rounded up."""
    return keys.unsqueeze(-1) + torch.arange((width + 3) // 4, device=keys.device) * _GOLDEN


def scale(p: float) -> float:
    """What stays is multiplied by this."""
    return 65536 / (65536 - _cut(p))


def _cut(p: float) -> int:
    """Of 65536 values those below it are dropped."""
    return round(p * 65536)


def fates(words: Tensor, p: float, site: int = 0) -> Tensor:
    """1 for what stays and 0 for what does not, int8: four for each of the ``words [..., w]`` with ``site`` added, ``[..., 4 w]``.

    A block at a time and in place, for a dozen passes are made over it. Clamped to two neighbouring numbers, for torch compares
    16-bit numbers, and converts what is true, several times as slowly.
    """
    cut, flat = _cut(p), words.flatten()
    out = torch.ones(4 * len(flat), dtype=torch.int8, device=words.device)
    parts = list(blocks(flat, BLOCK)) if cut else []
    z, free = (torch.empty_like(flat[parts[0]]) for _ in range(2)) if parts else (flat, flat)
    for some in parts:
        n = some.stop - some.start
        bits = _mix(torch.add(flat[some], site, out=z[:n]), free[:n]).view(torch.int16)
        out[4 * some.start : 4 * some.stop] = bits.clamp_(cut - 32769, cut - 32768).sub_(cut - 32769)
    return out.view(*words.shape[:-1], 4 * words.shape[-1])


class Masked(torch.autograd.Function):
    """``x`` times ``kept`` (1 and 0, int8) times ``factor``. The mask stays a byte per scalar until the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return _masked(x, kept, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _masked(grad, kept, ctx.factor), None, None


def _masked(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    out = torch.empty_like(x)
    for some in blocks(x, 4 * BLOCK):
        torch.mul(x[some], kept[some].to(x.dtype).mul_(factor), out=out[some])
    return out


class Masks:
    """The keys of the batch that is being computed; shared by all dropout modules of one model.

    ``rows [n]``, ``tokens [T]`` or ``[n, L]``. Inactive (evaluation) while ``rows`` is None.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.tokens: Tensor | None = None

    @contextmanager
    def active(self, rows: Tensor | None, tokens: Tensor | None) -> Iterator[None]:
        """Use these keys inside the block."""
        before = (self.rows, self.tokens)
        self.rows, self.tokens = rows, tokens
        try:
            yield
        finally:
            self.rows, self.tokens = before


def attention_keys(rows: Tensor, heads: int, queries: int) -> Tensor:
    """Keys ``[n, heads, queries]`` of attention probabilities: one per row, head and query position."""
    head, query = torch.arange(heads, device=rows.device), torch.arange(queries, device=rows.device)
    where = (head[:, None] + 1) * 65536 + query  # independent of padding
    return positions(rows[:, None, None], where)


class SeededDropout(nn.Module):
    """Drop-in for ``nn.Dropout``; ``kind`` says what the leading axis of a 2-D input is: tokens or rows."""

    def __init__(self, p: float, name: str, masks: Masks, kind: str) -> None:
        super().__init__()
        self.p, self.kind, self.masks = p, kind, masks
        self.site = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)

    def drop(self, x: Tensor, keys: Tensor) -> Tensor:
        """``x [..., width]`` times this module's mask for ``keys [...]``."""
        kept = fates(words(keys, x.shape[-1]), self.p, self.site)[..., : x.shape[-1]]
        out: Tensor = Masked.apply(x, kept, scale(self.p))  # type: ignore[no-untyped-call]
        return out

    def forward(self, x: Tensor) -> Tensor:
        rows = self.masks.rows
        if rows is None or self.p == 0:
            return x
        if x.dim() == 4:
            keys = attention_keys(rows, x.shape[1], x.shape[2])
        elif self.kind == "row":
            keys = rows
        elif self.masks.tokens is not None and self.masks.tokens.shape == x.shape[:-1]:
            keys = self.masks.tokens
        else:  # relative-position tables (DeBERTa): one mask for the whole batch
            keys = positions(rows[0], torch.arange(x.shape[:-1].numel(), device=rows.device)).view(x.shape[:-1])
        return self.drop(x, keys)


def _kind(name: str, head: tuple[str, ...]) -> str:
    in_backbone = "." in name and not name.startswith(("pooler.", *(f"{h}." for h in head)))
    return "token" if in_backbone else "row"


def clean_name(name: str) -> str:
    """A module name without what peft puts around it, so that both engines draw the same masks."""
    for wrapping in ("base_model.model.", ".base_layer", ".modules_to_save.default"):
        name = name.replace(wrapping, "")
    return name.replace(".lora_dropout.default", ".lora_dropout")


def seed_dropout(model: nn.Module, masks: Masks, head: tuple[str, ...]) -> None:
    """Replace every ``nn.Dropout`` of ``model`` by a :class:`SeededDropout` that reads ``masks``."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            parent, _, child = name.rpartition(".")
            clean = clean_name(name)
            owner = model.get_submodule(parent)
            owner._modules[child] = SeededDropout(module.p, clean, masks, _kind(clean, head))
