"""A run that is killed at random instants and resumed ends with the bits of one that was never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import Fork, kill_method


@pytest.mark.parametrize("method", ["fltac", "fedit"])
def test_a_few_kills(method: str, tmp_path: Path) -> None:
    tally = kill_method(method, 2, 1, tmp_path, Fork)
    print(tally)
    assert tally.good, (tally.unloadable, tally.different)
    assert tally.hits == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["fltac", "fedit"])
def test_many_kills(method: str, tmp_path: Path) -> None:
    tally = kill_method(method, 16, 0, tmp_path)
    print(tally)
    assert tally.good, (tally.unloadable, tally.different)
    assert tally.hits == 16
    assert sum(tally.kills[phase] > 0 for phase in ("start", "training", "commit")) == 3
