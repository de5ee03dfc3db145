"""The benchmark's own arithmetic."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from door import journal
from tiny import tiny_config

from fedquilt.runs.launch import run

GRID = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "grid.py"))


@pytest.mark.parametrize("features", ["b_factors", "history"])
def test_clusters_after_every_round_are_the_evaluator_s(tmp_path: Path, features: str) -> None:
    """With clients that are away: by ``history`` they are moved, too."""
    config = tiny_config(tmp_path, "fltac", rounds=5, method={"features": features, "participation": 0.5})
    folder = run(config, directory=tmp_path / "run")
    evaluated = [line["clustering"]["accuracy"] for line in journal(folder, "evals.jsonl") if line["round"]]
    assert GRID["clusters"](folder) == evaluated
    assert len(set(evaluated)) > 1, "nothing moved: the comparison says nothing"
