"""A run that is killed at random instants and resumed ends with the bits of one that was never interrupted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from door import fedquilt, result, write_config
from killing import Killer, fork, kill_method


@pytest.mark.parametrize("method", ["fltac", "fedit"])
def test_a_few_kills(method: str, tmp_path: Path) -> None:
    tally = kill_method(method, 2, 1, tmp_path, fork, rounds=12)
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
    assert sum(tally.kills[phase] > 0 for phase in ("start", "training", "state", "journal")) == 4


def test_the_harness_can_fail(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, "fedit", rounds=2), tmp_path / "run"
    assert fedquilt("run", config, "--dir", run).code == 0
    killer = Killer(fork, config, result(run), random.Random(0), 2, 1.0)
    killer.check(run)
    killer.compare(run)
    assert killer.tally.good
    with (run / "evals.jsonl").open("a") as lines:
        lines.write("{}\n")
    killer.compare(run)
    assert killer.tally.different == ["run: evals.jsonl"]
    newest = max((run / "state").glob("hub-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    killer.check(run)
    assert len(killer.tally.unloadable) == 1
