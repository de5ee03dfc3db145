"""Reading a run directory: what is there comes out, what is broken is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_run import Fake, write_run

from fedquilt.errors import StateError
from fedquilt.report.read import load_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def edit(path: Path, line: int, **changes: object) -> None:
    """Change fields of one line (counted from 0) of a log; None removes a field."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line]) | changes
    lines[line] = json.dumps({key: value for key, value in record.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")


def test_everything_of_a_finished_run_comes_out(run: Path) -> None:
    data = load_run(run)
    assert data.finished
    assert data.tasks == ("cola", "mrpc", "qnli", "sst2", "wnli")
    assert [row.round for row in data.rounds] == [1, 2, 3, 4]
    assert [row.round for row in data.evals] == [0, 1, 2, 3, 4]
    assert data.rounds[1].rejected[0].code == "nonfinite"
    parts = json.loads((run / "partition.json").read_text())["parts"]
    assert data.counts["sst2"] == tuple(len(part) for part in parts["sst2"])
    assert not data.notes


def test_settings_are_found_by_dotted_keys_and_tasks_by_name(run: Path) -> None:
    data = load_run(run)
    assert data.setting("method.lr") == "0.002"
    assert data.setting("nothing", "seed") == "0"
    assert data.setting("nothing") == "not recorded"
    assert data.flat()["tasks.mrpc.metrics"] == ["accuracy", "f1"]


def test_the_primary_metric_is_the_first_of_the_configuration_not_of_the_log(run: Path) -> None:
    text = (run / "config.toml").read_text().replace('["accuracy", "f1"]', '["f1", "accuracy"]')
    (run / "config.toml").write_text(text)
    assert load_run(run).primary("mrpc") == "f1"
    assert load_run(run).primary("cola") == "matthews"
    assert load_run(run).primary("unknown") == ""


def test_megabytes_are_cumulative_and_none_for_a_round_that_is_not_logged(run: Path) -> None:
    data = load_run(run)
    first = data.rounds[0]
    assert data.megabytes(0) == 0.0
    assert data.megabytes(3) == pytest.approx(3 * (first.bytes_up + first.bytes_down) / 1e6)
    assert data.megabytes(99) is None


def test_a_run_that_has_just_begun_can_be_read(run: Path) -> None:
    for log in ("rounds", "routes", "evals", "points", "events"):
        (run / f"{log}.jsonl").unlink()
    (run / "summary.json").unlink()
    data = load_run(run)
    assert not data.finished
    assert data.rounds == data.evals == data.points == data.routes == data.events == ()


def test_null_metrics_of_a_task_without_a_row_are_legal(run: Path) -> None:
    record = json.loads((run / "evals.jsonl").read_text().splitlines()[-1])
    tasks = {task: score | {"row": None, "metrics": None} for task, score in record["tasks"].items()}
    edit(run / "evals.jsonl", -1, tasks=tasks)
    assert load_run(run).evals[-1].tasks["cola"].metrics is None


def test_the_later_of_two_rows_of_one_round_wins(run: Path) -> None:
    with (run / "rounds.jsonl").open("a") as log:
        log.write(json.dumps(json.loads((run / "rounds.jsonl").read_text().splitlines()[1]) | {"loss": 0.125}) + "\n")
    rounds = load_run(run).rounds
    assert [row.round for row in rounds] == [1, 2, 3, 4]
    assert rounds[1].loss == 0.125


def test_a_torn_last_line_is_left_out_and_said(run: Path) -> None:
    with (run / "rounds.jsonl").open("a") as log:
        log.write('{"round": 5, "coh')
    data = load_run(run)
    assert len(data.rounds) == 4
    assert data.notes == ("The last line of rounds.jsonl is incomplete and left out.",)


def test_a_corrupt_line_is_named(run: Path) -> None:
    path = run / "evals.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StateError, match=r"evals\.jsonl:3"):
        load_run(run)


def test_a_missing_field_is_named(run: Path) -> None:
    edit(run / "rounds.jsonl", 3, total_up=...)
    with pytest.raises(StateError, match=r"rounds\.jsonl:4\n  why: total_up: Field required"):
        load_run(run)


@pytest.mark.parametrize("name", ["partition.json", "env.json"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(StateError, match=name):
        load_run(run)


@pytest.mark.parametrize(
    ("name", "text"), [("env.json", "[1]"), ("env.json", "{"), ("summary.json", "{}"), ("config.toml", "a = ")]
)
def test_a_corrupt_file_is_named(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(StateError, match=name):
        load_run(run)


def test_bytes_that_are_no_text_are_a_state_error(run: Path) -> None:
    (run / "rounds.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(StateError, match="not text"):
        load_run(run)


def test_another_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is not a run directory"):
        load_run(tmp_path)


def test_an_unclustered_run_has_no_clustering(tmp_path: Path) -> None:
    data = load_run(write_run(tmp_path / "fedit", Fake(clustered=False)))
    assert all(row.clustering is None for row in data.evals)
