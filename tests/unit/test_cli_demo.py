"""The demonstrations: which runs they start, and where everything goes. Training and drawing are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_run import Fake, write_run

from fedquilt.cli import main
from fedquilt.data import assets
from fedquilt.report import build, compare
from fedquilt.runs import launch
from fedquilt.runs.config import RunConfig


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[Any]]:
    """What was fetched and run."""
    seen: dict[str, list[Any]] = {"models": [], "sets": [], "runs": []}

    def run(config: RunConfig, *, directory: Path, progress: Any) -> Path:
        seen["runs"].append((config, directory))
        return write_run(directory, Fake(rounds=1))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assets, "model_folder", lambda name, say: seen["models"].append(name))
    monkeypatch.setattr(assets, "dataset", lambda name, say: seen["sets"].append(name))
    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(build, "report", lambda run: run / "report.html")
    monkeypatch.setattr(compare, "compare", lambda runs, out: out / "compare.html")
    return seen


@pytest.mark.parametrize(
    ("words", "folder", "model", "tasks"),
    [([], "runs/demo", "minilm", 4), (["text"], "runs/demo", "minilm", 4), (["image"], "runs/demo-image", "vit-s14", 3)],
)
def test_a_demonstration_runs_four_configurations_and_says_where_the_report_is(
    words: list[str], folder: str, model: str, tasks: int, begun: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *words, "--quick"]) == 0
    assert begun["models"] == [model]
    assert len(begun["sets"]) == tasks
    assert [path for _, path in begun["runs"]] == [Path(folder) / run for run in ("fltac", "fedit-steps", "fedit-params", "local")]
    assert all(config.rounds == 1 and len(config.tasks) == tasks for config, _ in begun["runs"])
    assert all((config.tasks[0].image is not None) == (model == "vit-s14") for config, _ in begun["runs"])
    said = capsys.readouterr().out
    assert f"{folder}/fltac/report.html" in said
    assert f"one rank-{tasks} LoRA for everybody" in said
    assert f"{folder}/compare.html" in said


@pytest.mark.parametrize("words", [[], ["image"], ["llm"]])
def test_a_second_one_in_the_same_folder_says_what_to_do_before_it_fetches(
    words: list[str], begun: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *words, "--quick", "--out", "old"]) == 0
    (Path("old") / "local" / "hub.json").touch()
    begun["models"].clear()
    capsys.readouterr()
    assert main(["demo", *words, "--quick", "--out", "old"]) == 5
    assert begun["models"] == []
    said = capsys.readouterr()
    assert not said.out
    assert "fix: remove it (rm -r old), or choose another folder with --out" in said.err


def test_another_demonstration_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "sound"]) == 2
    assert "'text'" in capsys.readouterr().err
