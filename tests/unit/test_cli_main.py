"""The entry point: exit codes, what errors look like, and how little it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedquilt import __version__
from fedquilt.cli import main
from fedquilt.errors import ConfigError, DataError, FedquiltError, ModelError, QuorumError, StateError
from fedquilt.runs import config as config_module

HEAVY = ("torch", "numpy", "pydantic", "transformers", "peft", "datasets", "sklearn", "scipy", "matplotlib", "plotly")


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys; from fedquilt.cli import main; main(['--help']); print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("run", "resume", "report", "compare", "export", "data", "methods", "cost", "toy", "doctor"):
        assert f" {command} " in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedquilt {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "No such command 'rum'"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "c.toml", "--rounds", "3"], "No such option"),
        (["report", "x", "--projection", "tsne"], "'tsne'"),
        (["run", "c.toml", "--seed", "-1"], "--seed"),
    ],
)
def test_usage_errors_exit_with_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("kind", "code"), [(ConfigError, 2), (ModelError, 2), (DataError, 3), (QuorumError, 4), (StateError, 5), (FedquiltError, 1)]
)
def test_an_error_is_told_without_a_traceback_and_has_its_code(
    kind: type[FedquiltError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise kind("column [red]'sentance'[/red] is not there", where="c.toml", fix="sentence")

    monkeypatch.setattr(config_module, "load_config", fail)
    assert main(["run", "c.toml"]) == code
    assert capsys.readouterr().err == "error: column [red]'sentance'[/red] is not there\n  where: c.toml\n  fix: sentence\n"


@pytest.mark.parametrize("words", [["--debug", "run", "none.toml"], ["run", "none.toml", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.toml"):
        main(words)


def test_something_that_is_no_user_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(config_module, "load_config", fail)
    with pytest.raises(ZeroDivisionError):
        main(["run", "c.toml"])


def test_an_interrupt_outside_training_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config_module, "load_config", stop)
    assert main(["run", "c.toml"]) == 130


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Usage" in shown.out + shown.err
