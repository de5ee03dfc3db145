"""What summary.json says of a run's time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_config

from fedquilt.engine.vectorised import VectorisedEngine
from fedquilt.evaluate import Evaluator
from fedquilt.runs import launch


def test_seconds_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation is no part of its round's training; on a clock that only the two of them move."""
    now = [0.0]
    monkeypatch.setattr(launch, "time", SimpleNamespace(time=lambda: now[0]))

    def takes(cls: type, name: str, seconds: float) -> None:
        real = getattr(cls, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(cls, name, timed)

    takes(Evaluator, "__call__", 5.0)
    takes(VectorisedEngine, "submit", 2.0)
    folder = launch.run(tiny_config(tmp_path, "fedit", rounds=3), directory=tmp_path / "run")
    seconds = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["seconds"]
    assert seconds == {"total": 4 * 5.0 + 3 * 2.0, "train": 3 * 2.0, "eval": 4 * 5.0}
