"""The benchmark's own arithmetic."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
from door import journal
from tiny import tiny_config

from fedquilt.runs.launch import run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GRID = runpy.run_path(str(BENCHMARKS / "grid.py"))


@pytest.mark.parametrize("features", ["b_factors", "history"])
def test_clusters_after_every_round_are_the_evaluator_s(tmp_path: Path, features: str) -> None:
    """With clients that are away: by ``history`` they are moved, too."""
    config = tiny_config(tmp_path, "fltac", rounds=5, method={"features": features, "participation": 0.5})
    folder = run(config, directory=tmp_path / "run")
    evaluated = [line["clustering"]["accuracy"] for line in journal(folder, "evals.jsonl") if line["round"]]
    assert GRID["clusters"](folder) == evaluated
    assert len(set(evaluated)) > 1, "nothing moved: the comparison says nothing"


def test_megabytes_until_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways together, from nothing at the start to what the summary says at the end."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    fedtt = runpy.run_path(str(BENCHMARKS / "fedtt.py"))
    folder = run(tiny_config(tmp_path, "fedit", rounds=4), directory=tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = fedtt["found"](folder)
    assert found.scores == [line["mean"] for line in journal(folder, "evals.jsonl")]
    assert [found.megabytes[0], found.megabytes[-1]] == [0.0, (summary["bytes"]["up"] + summary["bytes"]["down"]) / 1e6]
    assert found.rounds == [0, 1, 2, 3, 4]
    assert len(set(found.scores)) > 2, "nothing moved: the comparison says nothing"
    for sent, score in zip(found.megabytes, found.scores, strict=True):
        first = found.scores.index(next(other for other in found.scores if other >= score))
        assert found.until(score) == found.megabytes[first] <= sent
    assert found.until(1.01) is None
    assert [fedtt["reached"]([found] * 2, 1.01), fedtt["reached"]([found], found.scores[0])] == ["-", "0.00"]


def test_what_a_run_found_is_kept_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per run and configuration, without the folder that the data lies in."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("FEDQUILT_DATA", str(tmp_path))
    fedtt = runpy.run_path(str(BENCHMARKS / "fedtt.py"))
    config, ledger = tmp_path / "config.toml", tmp_path / "deep" / "ledger.jsonl"
    config.write_text(tiny_config(tmp_path, "fedit", rounds=1).to_toml(), encoding="utf-8")
    first = fedtt["ensured"](ledger, config, 0, tmp_path / "main" / "a", [])
    assert first.scores == [line["mean"] for line in journal(tmp_path / "main" / "a", "evals.jsonl")]
    shutil.rmtree(tmp_path / "main")
    assert fedtt["ensured"](ledger, config, 0, tmp_path / "main" / "a", []) == first
    assert not (tmp_path / "main").exists()
    fedtt["ensured"](ledger, config, 0, tmp_path / "main" / "a", ["method.lr=0.5"])  # another configuration
    assert (tmp_path / "main" / "a").exists()
    assert len(ledger.read_text(encoding="utf-8").splitlines()) == 2
    assert str(tmp_path) not in ledger.read_text(encoding="utf-8")
