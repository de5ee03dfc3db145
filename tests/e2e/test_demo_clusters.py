"""The demonstrations: FL-TAC's first clustering is right, though some of the tasks are other labels on the same inputs."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from fedquilt.runs.config import load_config
from fedquilt.runs.launch import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "slots"), [("fltac", 34), ("image-fltac", 16)])
def test_the_first_clustering_is_right(tmp_path: Path, name: str, slots: int) -> None:
    """Sentiment and strength of the same tweets; number, parity and loops of the same digits."""
    config = resources.files("fedquilt.configs") / "demo" / f"{name}.toml"
    folder = run(load_config(Path(str(config)), ["rounds=1", "evaluation.start=false"]), directory=tmp_path / "run")
    found = json.loads((folder / "evals.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert len(found["slots"]) == slots
    assert found["clustering"]["accuracy"] == 1.0
