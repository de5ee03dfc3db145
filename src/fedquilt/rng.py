"""Randomness. Public streams are derived, never carried along; secret ones come from the operating system.

A public seed is ``blake2b(run seed, purpose, client, round, ...)``: no generator state has to be saved in a checkpoint, and
client order, batching, number of processes and restarts cannot change a draw. Noise that protects somebody (differential
privacy, masks of secure aggregation) must not be predictable from the run seed and uses :func:`secret_generator`.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import torch

Salt = int | str


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


def secret_generator() -> torch.Generator:
    """A CPU generator seeded with operating-system entropy: different at every call, by design not reproducible."""
    return torch.Generator().manual_seed(secrets.randbits(63))
