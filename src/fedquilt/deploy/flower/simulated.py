"""Clients of Flower's own simulation: many in a process, one after the other, over one base model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fedquilt.deploy.build import host
from fedquilt.errors import ConfigError
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config


def answer(config: Path, client: int, state: Path, data: bytes) -> bytes:
    """A client's answer. All that it keeps is in its folder of ``state``, for nobody knows which process is asked next.

    Raises:
        ConfigError: secure aggregation, whose secrets must not be on a disk.
    """
    built = _built(config)
    if built.config.secure_aggregation:
        why = "between two phases a client keeps secrets in memory, and here every message may reach another process"
        fix = "fedquilt run (the same sums), or fedquilt deploy rehearse"
        raise ConfigError("no secure aggregation in Flower's simulation", where="secure_aggregation", why=why, fix=fix)
    return host(built, client, state / str(client)).answer(data)


@lru_cache(maxsize=1)
def _built(config: Path) -> Built:
    return build(load_config(config))
