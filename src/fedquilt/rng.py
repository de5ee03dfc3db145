"""Randomness. Public streams are derived, never carried along; secret ones come from the operating system.

A public seed is ``blake2b(run seed, purpose, client, round, ...)``: no generator state has to be saved in a checkpoint, and
client order, batching, number of processes and restarts cannot change a draw. Noise that protects somebody (differential
privacy, masks of secure aggregation) must not be predictable from the run seed: :func:`secret_normal`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Salt = int | str
AT_ONCE = 2**18  # secret numbers, which take twelve times their size to make


def derive(seed: int, *salt: Salt) -> int:
    """A 63-bit seed that depends on every argument, its type and its position.

    >>> derive(0, "batch", 3) == derive(0, "batch", 3), derive(0, 1, 23) == derive(0, 12, 3), derive(0, 1) == derive(0, "1")
    (True, False, False)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *salt))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *salt: Salt) -> torch.Generator:
    """A CPU generator for public randomness."""
    return torch.Generator().manual_seed(derive(seed, *salt))


def numpy_generator(seed: int, *salt: Salt) -> np.random.Generator:
    """The same for numpy code (partitions, shuffles)."""
    return np.random.default_rng(derive(seed, *salt))


def secret_normal(shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float64, from operating-system entropy alone: by design not reproducible.

    Two uniform numbers of 53 bits for each (Box & Muller 1958). No generator is seeded: on a CPU torch's keeps 32 bits of a seed,
    few enough for somebody who knows one of the numbers to try them all.
    """
    out = torch.empty(shape, dtype=torch.float64)
    for some in out.view(-1).split(AT_ONCE):
        drawn = np.frombuffer(os.urandom(16 * len(some)), dtype=np.uint64).reshape(2, -1)
        radius, turn = torch.from_numpy(((drawn >> np.uint64(11)) + 0.5) * 2.0**-53)
        some.copy_((-2 * radius.log()).sqrt() * (2 * math.pi * turn).cos())
    return out
