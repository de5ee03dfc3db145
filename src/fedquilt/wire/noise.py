"""Clipping of updates, and central Gaussian noise on their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.errors import ConfigError
from fedquilt.rng import secret_normal
from fedquilt.types import Job, Stack, State
from fedquilt.wire.chain import Plain


@dataclass(frozen=True)
class clip(Plain):
    """Scale an update so that its L2 norm over all leaves together is at most ``to``.

    delta <- delta * min(1, to / ||delta||)
    Source: DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963), flat clipping. Keeps shapes and dtype.

    >>> clip(1.0).send({"w": torch.tensor([3.0, 4.0])}, None)["w"]
    tensor([0.6000, 0.8000])
    """

    to: float

    def __post_init__(self) -> None:
        if not self.to > 0:
            raise ConfigError(f"the clipping norm must be positive, got {self.to}", where="method.clip")

    def send(self, delta: State, job: Job | None) -> State:
        norm = float(tree.flatten(delta).norm())
        return tree.scale(delta, min(1.0, self.to / norm)) if norm > 0 else delta


@dataclass(frozen=True)
class central_noise(Plain):
    """Add Gaussian noise of standard deviation ``multiplier * clip / contributors`` to every touched row's mean.

    Calibrated for an *unweighted mean of clipped updates*, one per client: zeros in the place of one client's update then move
    the mean by at most clip / n (zero-out adjacency; another update in its place, or a client more or less: by at most twice
    that). Who took part counts as known. The check of composition refuses it with any other reduction. The noise comes from the
    operating system's entropy: a public seed would let anybody subtract it.
    Source: DP-FedAvg (McMahan et al. 2018), Gaussian mechanism on the flat-clipped mean; there n is the expected number of
    clients, here that of those who came.
    """

    multiplier: float
    clip: float

    needs_unweighted_mean: ClassVar[bool] = True

    def finish(self, delta: Stack, touched: Tensor, counts: Tensor) -> Stack:
        std = self.multiplier * self.clip / counts.clamp(min=1).double()

        def noisy(d: Tensor) -> Tensor:
            shape = (-1, *[1] * (d.dim() - 1))
            noise = secret_normal(d.shape) * std.view(shape)
            return torch.where(touched.view(shape), d + noise.to(d.dtype), d)

        return tree.map_leaves(noisy, delta)
