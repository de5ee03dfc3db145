"""What all tests share. ``tiny_config`` may also be imported: ``from tiny import tiny_config``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import tiny_config

from fedquilt.runs.config import RunConfig

# The machine's speed must not decide about a pass, nor chance about which examples are tried.
settings.register_profile("fedquilt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedquilt")


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and a cache of its own: no test reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDQUILT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(1)
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., RunConfig]:
    """``tiny(method, **overrides)``: see :func:`tiny.tiny_config`."""
    return partial(tiny_config, tmp_path)
