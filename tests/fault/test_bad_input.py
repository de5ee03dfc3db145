"""Wrong configurations and data, through the command line: one message with what, where and fix, an exit code, nothing begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from door import Said, fedquilt, journal, write_config
from tiny import WORDS


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that works; tests break one thing of it."""
    return write_config(tmp_path, rounds=1)


def attempt(config: Path, *overrides: str) -> Said:
    """Run it with overrides; a refused run must leave no run behind that a resume would take up."""
    run = config.parent / "run"
    words = [word for override in overrides for word in ("--set", override)]
    said = fedquilt("run", config, "--dir", run, *words)
    if said.code:
        assert not (run / "hub.json").exists()
        assert not (run / "adapters").exists()
    return said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("roundz=3", ("unknown key 'roundz'", "where: roundz", "did you mean 'rounds'?")),
        ("method.step=3", ("unknown key 'step'", "where: method.step", "did you mean 'steps'?")),
        ("adapter.rnk=3", ("unknown key 'rnk'", "where: adapter.rnk", "did you mean 'rank'?")),
        ("model.max_len=3", ("unknown key 'max_len'", "where: model.max_len", "did you mean 'max_length'?")),
        ("tasks.0.lable=x", ("unknown key 'lable'", "where: tasks.0.lable", "did you mean 'label'?")),
        ("method.name=fl-tac", ("unknown method 'fl-tac'", "where: method.name", "did you mean 'fltac'?")),
        ("engine=vectorized", ("unknown engine 'vectorized'", "where: engine\n", "did you mean 'vectorised'?")),
        ("rounds=0", ("0 is not allowed for 'rounds'", "where: rounds", "fix: Input should be greater than or equal to 1")),
        ("method.tasks=0", ("unknown key 'tasks'", "where: method.tasks")),
        ("method.lr=-1.0", ("lr must be positive", "where: method.lr")),
        ("method.epochs=1", ("exactly one of steps and epochs", "where: method.steps")),
    ],
)
def test_an_unknown_key_or_a_bad_value(config: Path, override: str, words: tuple[str, ...]) -> None:
    message = attempt(config, override).complaint(2)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.step=3", ("unknown key 'step'", "where: method.step")),
        ("method={name = 'fedit', steps = 1}", ("'lr' is required", "where: method.lr")),
        ("method.steps=many", ("'many' is not allowed for 'steps'", "where: method.steps")),
        ("method.epochs=1", ("exactly one of steps and epochs", "where: method.steps")),
        ("method.name=fl-tac", ("unknown method 'fl-tac'", "where: method.name")),
        ("method.adapter=lora2", ("unknown adapter 'lora2'", "where: method.adapter", "did you mean 'lora'?")),
        ("adapter.family=lora2", ("unknown adapter 'lora2'", "where: adapter.family", "did you mean 'lora'?")),
        ("adapter.rank=0", ("0 is not allowed for 'rank'", "where: adapter.rank")),
        ("engine=vectorized", ("unknown engine 'vectorized'", "where: engine\n")),
    ],
)
def test_names_and_options_are_checked_before_data_is_read(config: Path, override: str, words: tuple[str, ...]) -> None:
    for rows in config.parent.glob("*.csv"):
        rows.unlink()
    asked = ("--set", override)
    for said in (attempt(config, override), fedquilt("run", config, "--dry-run", *asked), fedquilt("cost", config, *asked)):
        message = said.complaint(2)
        assert all(word in message for word in words), message
    assert "there is no such file" in attempt(config).complaint(3)


def test_texts_beyond_the_models_positions_are_refused_before_training(config: Path) -> None:
    asked = ("--set", "model.max_length=141")
    for said in (attempt(config, asked[1]), fedquilt("run", config, "--dry-run", *asked)):
        assert "141 tokens are more than 140 positions\n  where: model.max_length\n" in said.complaint(2)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    message = fedquilt("run", tmp_path / "none.toml").complaint(2)
    assert "cannot read the config file" in message
    assert "none.toml" in message
    (tmp_path / "bad.toml").write_text("rounds = \n", encoding="utf-8")
    assert "is not valid TOML" in fedquilt("run", tmp_path / "bad.toml").complaint(2)


def test_an_unknown_preset(config: Path) -> None:
    message = attempt(config, "tasks.0.preset=glue/sst3").complaint(2)
    assert "no preset 'glue/sst3'" in message
    assert "did you mean 'glue/sst2'?" in message


def test_an_unknown_asset(tmp_path: Path) -> None:
    config = write_config(tmp_path, tasks=[{"name": "x", "source": "asset:sarcasmus"}])
    message = attempt(config).complaint(3)
    assert "no data asset 'sarcasmus'" in message
    assert "did you mean 'sarcasm'?" in message


def test_an_unknown_tiny_model(config: Path) -> None:
    message = attempt(config, "model.name=tiny:bret").complaint(2)
    assert "unknown tiny model 'bret'" in message
    assert "did you mean 'bert'?" in message


@pytest.mark.parametrize("key", ["tasks.0.text", "tasks.0.label", "partition.column"])
def test_a_missing_column(config: Path, key: str) -> None:
    message = attempt(config, f"{key}=texts").complaint(3)
    assert "there is no column 'texts'" in message
    assert "colour-train.csv" in message
    assert "did you mean 'text'? (allowed: client, label, text)" in message
    run = config.parent / "run"
    assert "is not a run directory" in fedquilt("report", run).err
    assert "fedquilt run" in fedquilt("resume", run).complaint(5)
    assert attempt(config).code == 0  # the mended configuration runs there


def test_a_missing_file(config: Path) -> None:
    (config.parent / "mood-dev.csv").unlink()
    message = attempt(config).complaint(3)
    assert "there is no such file" in message
    assert "mood-dev.csv" in message


def test_a_label_outside_the_set(config: Path) -> None:
    with (config.parent / "mood-train.csv").open("a", encoding="utf-8") as rows:
        rows.write("yes,goood,client-0\n")
    message = attempt(config).complaint(3)
    assert "label 'goood' is not in the label set" in message
    assert "mood-train.csv, column 'label', row 18" in message
    assert "did you mean 'good'? (allowed: bad, good)" in message


@pytest.mark.parametrize("content", ["", "text,label,client\n", "text,label,client\n ,good,client-0\n"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_an_empty_split(config: Path, split: str, content: str) -> None:
    (config.parent / f"mood-{split}.csv").write_text(content, encoding="utf-8")
    message = attempt(config).complaint(3)
    assert "the file is empty" in message or "no row has a text" in message
    assert f"mood-{split}.csv" in message


def test_no_clusters(tmp_path: Path) -> None:
    message = attempt(write_config(tmp_path, "fltac", rounds=1), "method.tasks=0").complaint(2)
    assert "0 is not allowed for 'tasks'\n  where: method.tasks\n" in message


def test_more_clusters_than_slots(tmp_path: Path) -> None:
    config = write_config(tmp_path, "fltac", rounds=1)
    message = attempt(config, "method.tasks=10").complaint(2)
    assert "10 clusters for 9 slots" in message
    assert "where: method.tasks" in message
    assert "set method.tasks to 9 or less" in message
    assert attempt(config, "method.tasks=9").code == 0


def test_a_client_without_data_is_legal_and_told(config: Path) -> None:
    said = attempt(config, "partition.how=iid", "partition.clients=60")  # the three tasks have 48 rows
    assert said.code == 0
    parts = json.loads((config.parent / "run" / "partition.json").read_text())["parts"].values()
    idle = {client for client in range(60) if not any(part[client] for part in parts)}
    assert 12 <= len(idle) < 45
    first = ", ".join(map(str, sorted(idle)[:10]))
    assert f"note: {len(idle)} of 60 clients have no data: {first} and {len(idle) - 10} more" in said.err
    assert journal(config.parent / "run")[0]["cohort"] == sorted(set(range(60)) - idle)


def test_a_megabyte_of_text_is_cut_and_counted(config: Path) -> None:
    label, (word, *_) = next(iter(WORDS["mood"].items()))
    text = " ".join([word] * (1_000_000 // (len(word) + 1) + 1))
    assert len(text) >= 1_000_000
    with (config.parent / "mood-train.csv").open("a", encoding="utf-8") as rows:
        rows.write(f'"{text}",{label},client-0\n')
    said = attempt(config)
    assert said.code == 0
    assert "note: mood: train: 1 texts (5.6 %) cut to 24 tokens\n" in said.err


def test_a_model_without_the_wanted_modules(config: Path) -> None:
    message = attempt(config, 'adapter.targets=["q", "vale"]').complaint(2)
    assert "no linear map for the adapter target 'vale'" in message
    assert "where: adapter.targets" in message
    assert "allowed: down, k, o, q, up, v" in message


def test_training_that_diverges_ends_with_the_reason(config: Path) -> None:
    said = fedquilt("run", config, "--dir", config.parent / "run", "--set", "method.lr=1e30", "--set", "rounds=9")
    message = said.complaint(4)
    assert "no usable replies in 3 rounds in a row" in message
    assert "lower method.lr" in message
    lines = journal(config.parent / "run")  # the abandoned rounds are on record
    assert {entry["code"] for line in lines for entry in line["rejected"]} == {"nonfinite"}
    assert all(line["accepted"] == 0 for line in lines)
