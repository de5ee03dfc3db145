"""AdamW and SGD as pure functions on stacks. Every operation is elementwise, so rows cannot influence one another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.errors import ConfigError
from fedquilt.types import Round, Spec, Stack

Moments = Mapping[str, Tensor]  # "<name>/<leaf>" [G, ...] and "steps" [G]
SPARED = ("scale", "shift", "norm", "bias")  # roles


@dataclass(frozen=True)
class Local(ABC):
    """How a slot trains in one round.

    Attributes:
        lr: learning rate at the start of the run.
        steps: local steps per round (per task of the slot under ``per="task"``); or
        epochs: passes over the slot's data per round; exactly one of the two.
        batch: examples per step; a slot with fewer has smaller steps, never none.
        per: ``task``: a slot that mixes m tasks makes m times the steps, which is the compute of m slots of one task each.
        weight_decay: pulls numbers towards zero. Not biases, nor the vectors that scale (IA3, SSF, norms): those start at one, and
            at zero they switch off what they scale. Heads are pulled as a whole.
        schedule: of the learning rate over *rounds* (schedules that restart in every round decay m times).
        horizon: rounds of the schedule; filled in from the run's rounds.
        memory: ``reset`` (a new optimiser per round, as the reference codes do) or ``persist`` on the client.
        max_norm: clip each slot's gradient to this L2 norm; None: no clipping.
        spared: names of the leaves without weight decay; filled in from the adapter's roles.
    """

    lr: float
    steps: int | None = None
    epochs: int | None = None
    batch: int = 16
    per: Literal["slot", "task"] = "slot"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    horizon: int = 0
    memory: Literal["reset", "persist"] = "reset"
    max_norm: float | None = None
    spared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(
                "give exactly one of steps and epochs",
                where="method.steps, method.epochs",
                fix="set one of them, leave the other out",
            )
        for name in ("lr", "steps", "epochs", "batch", "max_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}", where=f"method.{name}", fix="a number above 0")

    def on(self, spec: Spec) -> Self:
        """With the leaves of this adapter that weight decay spares."""
        return replace(self, spared=frozenset(spec.names(*SPARED)))

    def decay(self, key: str) -> float:
        """Of this leaf."""
        return 0.0 if key in self.spared else self.weight_decay

    def rate(self, now: Round) -> float:
        """The learning rate of this round."""
        if self.schedule == "constant" or self.horizon < 1:
            return self.lr
        done = min(1.0, (now.number - 1) / self.horizon)
        return self.lr * (1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))

    def count(self, samples: int, tasks: int, effort: float) -> int:
        """Local steps of a slot with so many training examples and tasks; at least one."""
        if self.epochs is not None:
            base = self.epochs * math.ceil(samples / self.batch)
        else:
            base = (self.steps or 0) * (tasks if self.per == "task" else 1)
        return max(1, math.floor(base * effort + 0.5))

    @abstractmethod
    def init(self, start: Stack) -> Moments:
        """Fresh moments for G slots."""

    @abstractmethod
    def step(self, x: Stack, grads: Stack, moments: Moments, lr: float, active: Tensor) -> tuple[Stack, Moments]:
        """One step of the slots in ``active [G]`` (bool); the others keep everything."""

    def clipped(self, grads: Stack) -> Stack:
        """Gradients with every row's norm at most ``max_norm``."""
        if self.max_norm is None:
            return grads
        factor = (self.max_norm / tree.norm_rows(grads).clamp(min=1e-12)).clamp(max=1.0)
        return tree.map_leaves(lambda g: g * _rows(factor, g).to(g.dtype), grads)


def _rows(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (like.dim() - 1))


def _resting(active: Tensor) -> Tensor | None:
    """``active``, or None where everybody is: asked on the host alone, for a GPU would have to be waited for."""
    return None if active.device.type == "cpu" and bool(active.all()) else active


def _only(active: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if active is None else new.where(_rows(active, new), old)


@dataclass(frozen=True)
class sgd(Local):
    """x <- x - lr (g + weight_decay x), with heavy-ball momentum if asked: m <- momentum m + g. As ``torch.optim.SGD``."""

    momentum: float = 0.0

    def init(self, start: Stack) -> Moments:
        """Zero momentum."""
        return {f"m/{key}": torch.zeros_like(x) for key, x in start.items()} if self.momentum else {}

    def step(self, x: Stack, grads: Stack, moments: Moments, lr: float, active: Tensor) -> tuple[Stack, Moments]:
        """One step of the active slots."""
        grads = self.clipped(grads)
        new, after, some = {}, dict(moments), _resting(active)
        for key, value in x.items():
            decay = self.decay(key)
            move = grads[key] + decay * value if decay else grads[key]
            if self.momentum:
                move = self.momentum * moments[f"m/{key}"] + move
                after[f"m/{key}"] = _only(some, move, moments[f"m/{key}"])
            new[key] = _only(some, value - lr * move, value)
        return new, after


@dataclass(frozen=True)
class adamw(Local):
    """AdamW (Loshchilov & Hutter 2019), as ``torch.optim.AdamW``: bias-corrected moments, decoupled decay.

    Each slot counts its own steps, so slots with unequal numbers of steps share one call.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def init(self, start: Stack) -> Moments:
        """Zero moments and step counters."""
        moments = {f"{m}/{key}": torch.zeros_like(x) for key, x in start.items() for m in "mv"}
        return {**moments, "steps": torch.zeros(tree.length(start), dtype=torch.float64, device=next(iter(start.values())).device)}

    def step(self, x: Stack, grads: Stack, moments: Moments, lr: float, active: Tensor) -> tuple[Stack, Moments]:
        """One step of the active slots."""
        grads = self.clipped(grads)
        steps = moments["steps"] + active.double()
        seen = steps.clamp(min=1)
        size = lr / (1 - self.beta1**seen)
        root = (1 - self.beta2**seen).sqrt()
        new, after, some = {}, dict(moments), _resting(active)
        after["steps"] = steps
        for key, value in x.items():
            g = grads[key]
            m = moments[f"m/{key}"].lerp(g, 1 - self.beta1)
            v = (moments[f"v/{key}"] * self.beta2).add_(g.square().mul_(1 - self.beta2))  # in place: what is in the cache is used
            bottom = v.sqrt().div_(_rows(root, v).to(v.dtype)).add_(self.eps)
            decay = self.decay(key)
            decayed = value * (1 - lr * decay) if decay else value
            new[key] = _only(some, decayed - (m / bottom).mul_(_rows(size, m).to(m.dtype)), value)
            after[f"m/{key}"] = _only(some, m, moments[f"m/{key}"])
            after[f"v/{key}"] = _only(some, v, moments[f"v/{key}"])
        return new, after
