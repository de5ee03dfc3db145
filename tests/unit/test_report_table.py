"""Tables: formatting, grouping over seeds, and the summary against the logs it comes from."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from fake_run import ADAPTER, HEAD, TASKS, Fake, write_run

from fedquilt.report.read import RunData, load_run
from fedquilt.report.table import Spread, Table, group_runs, score_columns, show, spread, summary_rows
from fedquilt.runs.config import RunConfig


def runs(folder: Path, *fakes: Fake) -> list[RunData]:
    return [load_run(write_run(folder / str(place), fake)) for place, fake in enumerate(fakes)]


def test_cells_are_shown_with_three_digits_and_gaps_as_a_dash() -> None:
    assert [show(cell) for cell in (None, float("nan"), "text", 7, 1234567, -0.5, 0.0, 99.96)] == [
        "–", "–", "text", "7", "1,234,567", "-0.500", "0.000", "100.0",
    ]  # fmt: skip


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([0.8, 0.9, 1.0]) == Spread(pytest.approx(0.9), pytest.approx(0.1), 3)
    assert spread([0.8, None, float("nan")]) == 0.8
    assert spread([None]) is None


def test_a_row_must_fit_its_columns() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table(("a",), ((1, 2),))


def test_csv_and_records_hold_raw_values() -> None:
    table = Table(("name", "score"), (("a, b", Spread(0.5, 0.1, 2)), ("c", None), ("d", float("nan"))))
    assert list(csv.reader(io.StringIO(table.csv())))[1] == ["a, b", "0.5"]
    records = table.records()
    assert records[0] == {"name": "a, b", "score": {"mean": 0.5, "sd": 0.1, "n": 2}}
    assert records[2]["score"] is None
    json.dumps(records, allow_nan=False)


def test_numbers_are_aligned_right_and_text_left() -> None:
    table = Table(("name", "score", "nothing"), (("a", 0.5, None), ("b", None, None)))
    assert [table.numeric(column) for column in range(3)] == [False, True, True]


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    groups = group_runs(runs(tmp_path, Fake(seed=0), Fake(seed=1, name="renamed"), Fake(seed=2, lr=0.1)))
    assert [len(group.runs) for group in groups] == [2, 1]
    assert groups[0].seeds == "0, 1"


def test_groups_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    groups = group_runs(runs(tmp_path, Fake(lr=0.1), Fake(lr=0.2), Fake(name="other", lr=0.1, method="x")))
    assert [group.label for group in groups] == ["glue-fltac (method.lr=0.1)", "glue-fltac (method.lr=0.2)", "other"]


def test_a_second_run_of_a_seed_is_no_second_seed(tmp_path: Path) -> None:
    zero, copy, one = runs(tmp_path, Fake(), Fake(), Fake(seed=1))
    both, alone = group_runs([zero, copy, one])
    assert (both.label, both.runs, both.seeds) == ("glue-fltac", (zero, one), "0, 1")
    assert (alone.label, alone.runs) == ("glue-fltac (1)", (copy,))
    table = summary_rows([zero, copy]).records()
    assert [row["run"] for row in table] == ["glue-fltac (0)", "glue-fltac (1)"]
    assert [row["mean"] for row in table] == [zero.evals[-1].mean] * 2, "no standard deviation of copies"


def test_labels_are_unique_where_folders_of_repeats_have_one_name(tmp_path: Path) -> None:
    copies = [load_run(write_run(tmp_path / folder / "run")) for folder in "abc"]
    labels = [group.label for group in group_runs(copies)]
    assert len(set(labels)) == 3
    assert all(str(copy.path) in label for copy, label in zip(copies, labels, strict=True))


def test_an_unfinished_run_is_not_averaged_with_finished_ones(tmp_path: Path) -> None:
    killed, other = Fake(finished=False, rounds=2), Fake(finished=False, seed=1)
    done, one, two = runs(tmp_path, Fake(), killed, other)
    text = (one.path / "config.toml").read_text()
    (one.path / "config.toml").write_text(text.replace("rounds = 2", "rounds = 4"))
    one = load_run(one.path)
    first, second = summary_rows([one, done, two]).records()
    assert (first["run"], first["seeds"], first["rounds"]) == ("glue-fltac (unfinished)", "0, 1", "2–4 (unfinished)")
    assert (second["run"], second["seeds"], second["rounds"]) == ("glue-fltac", "0", 4)
    assert [group.runs for group in group_runs([done, two])] == [(done,), (two,)], "of another seed neither"
    again = load_run(write_run(tmp_path / "again", Fake(finished=False)))
    labels = [group.label for group in group_runs([done, again, one])]
    assert labels == ["glue-fltac", "glue-fltac (unfinished, again)", "glue-fltac (unfinished, 1)"]


def test_the_partition_has_a_seed_too(tmp_path: Path) -> None:
    made = [load_run(write_run(tmp_path / name)) for name in ("own", "same", "other")]
    for run, seed in zip(made[1:], (0, 7), strict=True):
        text = (run.path / "config.toml").read_text()
        (run.path / "config.toml").write_text(text.replace("[partition]", f"[partition]\nseed = {seed}"))
    own, same, other = (load_run(run.path) for run in made)
    groups = group_runs([own, same, other])
    assert [group.runs for group in groups] == [(own, other), (same,)], "a partition without a seed has the run's"
    assert groups[0].seeds == "0 (partition 0), 0 (partition 7)"


def configured(folder: Path, config: RunConfig, without: str = "") -> RunData:
    """A run of this configuration; ``without``: by a version that did not have this line yet, nor wrote down what was chosen."""
    write_run(folder)
    text = config.to_toml()
    assert without in text
    (folder / "config.toml").write_text(text.replace(without, ""))
    (folder / "env.json").write_text(json.dumps({} if without else {"chosen": json.loads(config.chosen())}))
    return load_run(folder)


def test_a_default_that_one_version_did_not_have_tells_nothing_apart(tmp_path: Path) -> None:
    base = {"rounds": 2, "method": {"name": "fedit"}, "tasks": [{"name": "sst2", "preset": "glue/sst2"}]}
    plain, slow, half = (RunConfig.model_validate(base | more) for more in ({}, {"workers": 2}, {"quorum": 0.5}))
    before = configured(tmp_path / "before", plain, without="quorum = 0.0\n")
    now = configured(tmp_path / "now", plain.model_copy(update={"seed": 1}))
    other, third = configured(tmp_path / "other", slow), configured(tmp_path / "third", half)
    groups = group_runs([before, now, other, third])
    assert [group.runs for group in groups] == [(before, now), (other,), (third,)]
    labels = ["run (quorum=unset, workers=1)", "run (quorum=0.0, workers=2)", "run (quorum=0.5, workers=1)"]
    assert [group.label for group in groups] == labels
    assert [len(group.runs) for group in group_runs([before, third])] == [1, 1]


def test_the_summary_is_what_the_logs_say(tmp_path: Path) -> None:
    two = runs(tmp_path, Fake(seed=0), Fake(seed=1))
    record = summary_rows(two).records()[0]
    means = [data.evals[-1].mean for data in two]
    assert record["mean"] == {"mean": pytest.approx(statistics.fmean(means)), "sd": pytest.approx(statistics.stdev(means)), "n": 2}
    cola = [data.evals[-1].tasks["cola"].slot_mean for data in two]
    assert record["cola"]["mean"] == pytest.approx(statistics.fmean(cola))
    assert (record["adapter"], record["head"], record["total"]) == (ADAPTER, HEAD, ADAPTER + HEAD)
    sent = [(data.rounds[-1].total_up + data.rounds[-1].total_down) / 1e6 for data in two]
    assert record["MB total"]["mean"] == pytest.approx(statistics.fmean(sent))
    assert record["rounds"] == 4


def test_unfinished_runs_and_tasks_that_only_one_run_has_leave_gaps(tmp_path: Path) -> None:
    table = summary_rows(runs(tmp_path, Fake(finished=False), Fake(name="one", tasks=("sst2",))))
    first, second = table.records()
    assert first["rounds"] == "4 (unfinished)"
    assert first["adapter"] is None
    assert second["cola"] is None
    assert score_columns(table) == ("run", "method", "seeds", "rounds", "mean", *TASKS, "clustering")


def test_pick_keeps_the_order_asked_for() -> None:
    table = Table(("a", "b", "c"), ((1, 2, 3),))
    assert table.pick(("c", "a")) == Table(("c", "a"), ((3, 1),))
