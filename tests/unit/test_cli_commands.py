"""The commands: what they hand to the library, and what they print. Training itself is replaced by a fake run directory."""

from __future__ import annotations

import json
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import TASKS, Fake, write_run

from fedquilt.cli import data, main, methods
from fedquilt.runs import export as export_module
from fedquilt.runs import launch
from fedquilt.runs import plan as plan_module
from fedquilt.runs.config import RunConfig
from fedquilt.runs.plan import Plan

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def config(tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file beside its data, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.toml"
    path.write_text(tiny("fltac").to_toml())
    return path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, Path]]:
    """Calls of launch.run, which writes a fake run instead of training."""
    calls: list[tuple[RunConfig, Path]] = []

    def run(config: RunConfig, *, directory: Path, progress: Any) -> Path:
        progress.line("training")
        calls.append((config, directory))
        return write_run(directory, Fake(rounds=1))

    monkeypatch.setattr(launch, "run", run)
    return calls


def out(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)


def test_run_hands_over_the_overridden_configuration(
    config: Path, launched: list[tuple[RunConfig, Path]], capsys: Captured
) -> None:
    assert main(["run", str(config), "--set", "method.lr=0.5", "--set", "rounds=7", "--set", "seed=3"]) == 0
    [(resolved, folder)] = launched
    assert (resolved.method["lr"], resolved.rounds, resolved.seed) == (0.5, 7, 3)
    assert folder == Path("runs/fltac")
    shown = capsys.readouterr()
    assert "fedquilt report runs/fltac" in shown.out
    assert "matthews" in shown.out
    assert "training" in shown.err
    assert "training" not in shown.out


def test_a_seed_has_its_own_directory_and_wins_over_set(
    config: Path, launched: list[tuple[RunConfig, Path]], capsys: Captured
) -> None:
    assert main(["run", str(config), "--seed", "5", "--set", "seed=3", "--json"]) == 0
    assert launched[0][0].seed == 5
    assert launched[0][1] == Path("runs/fltac-seed-5")
    assert out(capsys)["summary"]["method"] == "fltac"


def test_dir_is_the_run_directory(config: Path, launched: list[tuple[RunConfig, Path]], tmp_path: Path) -> None:
    assert main(["run", str(config), "--seed", "5", "--dir", str(tmp_path / "mine")]) == 0
    assert launched[0][1] == tmp_path / "mine"


def test_an_unknown_key_is_refused_before_anything_runs(config: Path, launched: list[Any], capsys: Captured) -> None:
    assert main(["run", str(config), "--set", "round=7"]) == 2
    assert "did you mean 'rounds'?" in capsys.readouterr().err
    assert not launched


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_says_how_to_continue(config: Path, begun: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def stop(_: RunConfig, *, directory: Path, progress: object) -> Path:
        if begun:
            write_run(directory, Fake(finished=False))
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(launch, "run", stop)
    assert main(["run", str(config)]) == 130
    assert ("fedquilt resume runs/fltac" in capsys.readouterr().err) == begun


def test_resume_continues_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    run = write_run(tmp_path / "run", Fake(rounds=1))
    seen = []
    monkeypatch.setattr(launch, "resume", lambda folder, progress: seen.append(folder) or folder)
    assert main(["resume", str(run)]) == 0
    assert seen == [run]
    assert f"run directory: {run}" in capsys.readouterr().out


def plan(_: RunConfig) -> Plan:
    return Plan(
        method="Method(...)",
        clients=2,
        slots=3,
        rows=({"client": 0, "slots": 2, "colour": 9, "mood": 4}, {"client": 1, "slots": 1, "colour": 5, "mood": 0}),
        parameters={"adapter": 4608, "head": 770, "total": 5378, "bank": 10756},
        up={0: 2000, 1: 1000},
        down={0: 5, 1: 5},
        steps=12345,
        memory=2_500_000_000,
        notes=("client 7 has no data",),
    )


def test_a_dry_run_shows_the_plan_and_trains_nothing(
    config: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(plan_module, "plan", plan)
    assert main(["run", str(config), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "[method]",
        "4,608 adapter + 770 head = 5,378",
        "1.00 kB to 2.00 kB, mean 1.50 kB",
        "2.50 GB",
        "12,345",
        "note: client 7",
    ):
        assert text in shown, text
    assert ["1", "1", "5", "0"] in [line.split() for line in shown.splitlines()]
    assert main(["run", str(config), "--dry-run", "--json"]) == 0
    record = out(capsys)
    assert record["plan"]["parameters"]["total"] == 5378
    assert record["config"]["method"]["name"] == "fltac"
    assert not launched


def test_export_prints_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(export_module, "export", lambda run, out: [out / "row-00", out / "row-01"])
    assert main(["export", "RUN", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "row-00"), str(tmp_path / "row-01")]
    assert main(["export", "RUN", "--out", str(tmp_path), "--json"]) == 0
    assert out(capsys) == {"folders": [str(tmp_path / "row-00"), str(tmp_path / "row-01")]}


def test_data_inspect_counts_rows_and_labels(config: Path, capsys: Captured) -> None:
    assert main(["data", "inspect", str(config), "--json"]) == 0
    records = {record["task"]: record for record in out(capsys)}
    assert records["colour"]["train"] == 15
    assert records["colour"]["labels"] == {"blue": 8, "red": 7}
    assert main(["data", "inspect", str(config)]) == 0
    assert "blue 53%, red 47%" in capsys.readouterr().out


def test_data_partition_shows_and_saves(config: Path, tmp_path: Path, capsys: Captured) -> None:
    saved = tmp_path / "p.json"
    assert main(["data", "partition", str(config), "--out", str(saved), "--json"]) == 0
    record = out(capsys)
    assert record["counts"]["colour"] == [9, 5, 1, 0]
    assert [len(part) for part in json.loads(saved.read_text())["parts"]["colour"]] == [9, 5, 1, 0]
    assert main(["data", "partition", str(config)]) == 0
    assert ["3", "0", "6", "5", "11"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(["data", "partition", str(config), "--out", str(saved / "inside.json")]) == 5
    assert "fix: choose another folder, one that you may write to" in capsys.readouterr().err


def test_methods_are_listed_and_described(capsys: Captured) -> None:
    assert main(["methods", "list", "--json"]) == 0
    found = {record["name"]: record["about"] for record in out(capsys)}
    assert {"fltac", "fedit", "local_only"} <= set(found)
    assert all(found.values())
    assert main(["methods", "list"]) == 0
    assert "fltac" in capsys.readouterr().out
    assert main(["methods", "show", "fltac", "--json"]) == 0
    options = {option["name"]: option for option in out(capsys)["options"]}
    assert options["lr"]["required"]
    assert options["constraint"]["default"] == "cannot-link"
    assert main(["methods", "show", "fltac"]) == 0
    assert "[method]" in capsys.readouterr().out
    assert options["tasks"]["default"] is None
    assert not options["tasks"]["required"]
    assert main(["methods", "show", "fltak"]) == 2
    assert "did you mean 'fltac'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fltac", "fedit", "fedtt_plus", "local_only", "centralised_full", "head_only", "rolora"])
def test_every_option_is_shown_in_plain_words_with_its_default(name: str, capsys: Captured) -> None:
    assert main(["methods", "show", name, "--json"]) == 0
    record = out(capsys)
    assert not re.search(r"`|:\w+:", record["about"] + "".join(option["about"] for option in record["options"]))
    assert all(option["about"] for option in record["options"])
    assert not re.search("Optional|Literal|Union|None", "".join(option["type"] for option in record["options"]))
    defaults = {option["name"]: option["default"] for option in record["options"] if not option["required"]}
    expected = {"batch": 16, "optimiser": "adamw", "weight_decay": 0.0, "momentum": 0.0, "schedule": "constant", "max_norm": None}
    assert expected.items() <= defaults.items()
    assert [option["name"] for option in record["options"] if option["required"]] == ["lr"]


def test_the_defaults_that_are_shown_are_those_that_train(capsys: Captured) -> None:
    from fedquilt import local

    assert main(["methods", "show", "fedit", "--json"]) == 0
    shown = {option["name"]: option["default"] for option in out(capsys)["options"]}
    assert isinstance(local.optimiser({"lr": 1.0, "steps": 1}), getattr(local, shown["optimiser"]))
    used = local.optimiser({"lr": 1.0, "steps": 1, "optimiser": "sgd"})
    assert all(getattr(used, key) == shown[key] for key in ("batch", "weight_decay", "momentum", "schedule", "max_norm"))


def test_a_docstring_is_shown_without_its_markup_and_its_arguments_apart() -> None:
    def builder(one: int, two: int) -> None:
        """Says ``this``, see :class:`fedquilt.pick.cores`.

        More.

        Args:
            one: the first,
                which is long.
            two: :mod:`json`.

        Raises:
            ValueError: never.
        """

    about, told = methods._described(builder)
    assert about == "Says this, see fedquilt.pick.cores.\n\nMore.\n\nRaises:\n    ValueError: never."
    assert told == {"one": "the first, which is long", "two": "json"}


def test_report_writes_the_page(tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("plotly", reason="needs the viz extra")
    run = write_run(tmp_path / "run", Fake(rounds=1))
    assert main(["report", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"report:  {run / 'report.html'}" in shown
    assert all(task in shown for task in TASKS)
    assert main(["report", str(run), "--json", "--watch"]) == 0  # a finished run ends the watch at once
    assert out(capsys)["summary"][0]["seeds"] == "0"


def test_report_of_something_else_exits_with_5(tmp_path: Path, capsys: Captured) -> None:
    assert main(["report", str(tmp_path)]) == 5
    assert "is not a run directory" in capsys.readouterr().err


def test_compare_prints_one_line_per_configuration(tmp_path: Path, capsys: Captured) -> None:
    runs = [str(write_run(tmp_path / str(seed), Fake(seed=seed, rounds=1))) for seed in range(2)]
    assert main(["compare", *runs, "--json"]) == 0
    record = out(capsys)
    assert record["compare"] is None
    assert [row["seeds"] for row in record["runs"]] == ["0, 1"]
    pytest.importorskip("plotly", reason="needs the viz extra")
    assert main(["compare", *runs, "--out", str(tmp_path / "both")]) == 0
    assert "±" in (shown := capsys.readouterr().out)
    assert str(tmp_path / "both" / "compare.html") in shown


def test_a_wide_table_is_not_cut_in_a_pipe(tmp_path: Path, capsys: Captured) -> None:
    tasks = tuple(f"a-task-with-a-long-name-{n}" for n in range(9))
    run = write_run(tmp_path / "run", Fake(tasks=tasks, rounds=1))
    assert main(["compare", str(run)]) == 0
    assert all(task in capsys.readouterr().out for task in tasks[:1])
    assert main(["compare", str(run)]) == 0
    assert "…" not in capsys.readouterr().out


def test_a_regression_shows_its_range_and_many_labels_are_cut() -> None:
    assert data._labels({"labels": None, "range": [0.0, 4.5]}) == "0 to 4.5"
    many = {"labels": {f"l{n}": 1 for n in range(12)}, "train": 12}
    assert data._labels(many).endswith("l7 8%, ... 12 in all")


def test_deploy_init_writes_a_folder_per_machine_and_never_twice(tmp_path: Path, capsys: Captured) -> None:
    """The certificate holds for the names given; private keys are their owner's."""
    from cryptography import x509

    folder = tmp_path / "federation"
    assert main(["deploy", "init", str(folder), "--host", "server.example.org", "--host", "10.0.0.1", "--clients", "2"]) == 0
    secret = [folder / "server" / "server.key", folder / "client-0" / "node", folder / "client-1" / "node"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secret] == [0o600] * 3
    own, root = (x509.load_pem_x509_certificate((folder / "server" / n).read_bytes()) for n in ("server.pem", "ca.crt"))
    own.verify_directly_issued_by(root)
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example.org", "server", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "127.0.0.1"]
    keys = {(folder / f"client-{n}" / "node").read_bytes() for n in range(2)}
    assert len(keys) == 2
    assert not list(folder.rglob("ca.key")), "the authority's key is not kept"
    assert main(["deploy", "init", str(folder), "--host", "x"]) == 5
    assert "keys are never replaced" in capsys.readouterr().err
    assert {(folder / f"client-{n}" / "node").read_bytes() for n in range(2)} == keys


def test_deploy_without_flower_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setattr("fedquilt.cli.flower.find_spec", lambda name: None)
    assert main(["deploy", "init", str(tmp_path / "x"), "--host", "x"]) == 2
    assert "pip install 'fedquilt[flower]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
