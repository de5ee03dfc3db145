"""What all tests share. ``tiny_config`` may also be imported: ``from tiny import tiny_config``."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import FORKING
from hypothesis import HealthCheck, settings
from stored import commit
from tiny import tiny_config

from fedquilt.runs.config import RunConfig
from fedquilt.runs.store import Store

# The machine's speed must not decide about a pass, nor chance about which examples are tried.
settings.register_profile("fedquilt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedquilt")


# Tracing lines makes a test with a small model a quarter to a half slower, so coverage is measured where the core's own tests are.
UNTRACED = ("conformance/", "e2e/", *(f"unit/test_{what}" for what in ("cli", "cost", "deploy", "docs", "process", "report")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole runs, of commands and of pages are left out of the coverage that ``scripts/test`` measures."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(UNTRACED):
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and a cache of its own: no test reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDQUILT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(1)
        yield


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sockets, whose paths have at most 100 bytes: ``tmp_path`` has the test's name in its own."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are forked. Tests without it start them as users do."""
    monkeypatch.setattr("fedquilt.runs.workers.subprocess", FORKING)
    monkeypatch.setattr("fedquilt.deploy.worker.subprocess", FORKING)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Signals as in a process started from a terminal, whatever started the test run; the test must leave them so."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    now = {number: signal.getsignal(number) for number in usual}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert now == usual


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., RunConfig]:
    """``tiny(method, **overrides)``: see :func:`tiny.tiny_config`."""
    return partial(tiny_config, tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A directory with rounds 1 and 2 committed."""
    store = Store(tmp_path)
    commit(store, 1)
    commit(store, 2)
    return tmp_path
