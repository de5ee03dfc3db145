"""The run directory under a full disk, a second process, damaged files and signals: nothing committed is lost, and a resume ends
with the bits of a run that nothing happened to."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from door import Said, committed, differences, fedquilt, finish, result, start, wait_for, write_config

from fedquilt.runs import launch
from fedquilt.runs.store import Store

ROUNDS, MANY = 12, 5000
OVERRIDES = {"method": {"steps": 1}, "model": {"dropout": 0.1}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its configuration is in the folder above."""
    folder = tmp_path_factory.mktemp("done")
    config = write_config(folder, "fltac", rounds=ROUNDS, adapter={"head": "private"}, **OVERRIDES)
    assert fedquilt("run", config, "--dir", folder / "run").code == 0
    return folder / "run"


@pytest.fixture
def config(done: Path) -> Path:
    """The configuration of that run."""
    return next(done.parent.glob("*.toml"))


def newest(run: Path, kind: str) -> Path:
    return max((run / "state").glob(f"{kind}-*.safetensors"))


def flip(path: Path, place: int = -1) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def resumed(run: Path, done: Path) -> Said:
    """Resume, and compare with the undisturbed run."""
    said = fedquilt("resume", run)
    assert said.code == 0, said.err
    assert differences(result(run), result(done)) == []
    return said


# ---- full disk -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_a_resume_completes_it(done: Path, config: Path, tmp_path: Path) -> None:
    """By a real limit on the size of files: the largest journal reaches it after some rounds."""
    run = tmp_path / "run"
    limit = (done / "points.jsonl").stat().st_size // 2

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    message = finish(start("run", config, "--dir", run, preexec_fn=small)).complaint(5)
    assert "cannot write round" in message
    assert "File too large" in message
    assert f"fedquilt resume {run}" in message
    assert not list((run / "state").glob("*.tmp"))
    loaded = Store(run).load(strict=True)
    assert loaded is not None
    assert 1 <= loaded[0].step == committed(run) < ROUNDS
    resumed(run, done)


class Disk:
    """Lets the first ``works`` calls of fsync and rename through, then reports a full disk."""

    def __init__(self, patch: pytest.MonkeyPatch, works: int) -> None:
        self.calls, self.works = 0, works
        for module, name in ((os, "fsync"), (os, "replace"), (Path, "replace")):
            patch.setattr(module, name, self.guard(getattr(module, name)))

    def guard(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self.calls += 1
            if self.calls > self.works:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        return call


def run_until_full(config: Path, run: Path, works: int) -> tuple[Said, int]:
    """Run on a disk that is full after so many writes; (answer, writes tried)."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, works)
        return fedquilt("run", config, "--dir", run), disk.calls


def check_full_disk(done: Path, config: Path, run: Path, works: int) -> None:
    said, _ = run_until_full(config, run, works)
    message = said.complaint(5)
    assert "No space left on device" in message
    if (run / "config.toml").exists():
        assert f"fedquilt resume {run}" in message
        Store(run).load(strict=True)
        resumed(run, done)
    else:
        assert fedquilt("run", config, "--dir", run).code == 0
        assert differences(result(run), result(done)) == []


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """(run, configuration, number of writes) of a shorter run."""
    folder = tmp_path_factory.mktemp("short")
    config = write_config(folder, "fltac", rounds=2, adapter={"head": "private"}, **OVERRIDES)
    assert fedquilt("run", config, "--dir", folder / "first").code == 0  # fills the cache of tokens
    said, writes = run_until_full(config, folder / "run", 10**9)
    assert said.code == 0
    return folder / "run", config, writes


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.99])
def test_the_disk_fills_up_at_some_write(short: tuple[Path, Path, int], share: float, tmp_path: Path) -> None:
    done, config, writes = short
    check_full_disk(done, config, tmp_path / "run", int(share * writes))


@pytest.mark.slow
def test_the_disk_fills_up_at_every_write(short: tuple[Path, Path, int], tmp_path: Path) -> None:
    done, config, writes = short
    assert writes > 40
    for works in range(writes):
        check_full_disk(done, config, tmp_path / str(works), works)


def test_a_folder_that_cannot_be_made(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot make the run directory" in fedquilt("run", config, "--dir", tmp_path / "file" / "run").complaint(5)


# ---- damaged and refused directories -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hub", "clients"])
@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(done: Path, tmp_path: Path, kind: str, place: int) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    flip(newest(run, kind), place)
    said = resumed(run, done)
    assert "warning: fell back to the round before" in said.err
    assert f"{kind}-{ROUNDS:06d}.safetensors is corrupt" in said.err
    assert f"round {ROUNDS}/{ROUNDS}" in said.err  # made again


def test_a_checkpoint_that_was_cut_or_is_gone_falls_back_too(done: Path, tmp_path: Path) -> None:
    cut, gone = shutil.copytree(done, tmp_path / "cut"), shutil.copytree(done, tmp_path / "gone")
    os.truncate(newest(cut, "hub"), 100)
    newest(gone, "hub").unlink()
    assert "is corrupt" in resumed(cut, done).err
    assert "cannot read hub-" in resumed(gone, done).err


@pytest.mark.parametrize("kind", ["hub", "clients"])
def test_a_corrupt_checkpoint_is_not_exported_as_the_one_before(done: Path, tmp_path: Path, kind: str) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    flip(newest(run, kind))
    before = result(run)
    for words in (("export", run), ("export", run, "--out", tmp_path / "out")):
        message = fedquilt(*words).complaint(5)
        assert f"{kind}-{ROUNDS:06d}.safetensors is corrupt" in message
        assert f"fix: fedquilt resume {run}" in message
    assert differences(result(run), before) == []
    assert not (tmp_path / "out").exists()
    resumed(run, done)
    assert fedquilt("export", run, "--out", tmp_path / "out").code == 0


def test_two_corrupt_checkpoints_are_an_error_and_nothing_is_overwritten(done: Path, tmp_path: Path) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    for path in (run / "state").glob("hub-*"):
        flip(path)
    before = result(run)
    message = fedquilt("resume", run).complaint(5)
    assert "no readable state in the run directory" in message
    assert f"hub-{ROUNDS:06d}.safetensors is corrupt; hub-{ROUNDS - 1:06d}.safetensors is corrupt" in message
    assert differences(result(run), before) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("hub.json", "{", "hub.json is corrupt"),
        ("hub.json", '{"format": 9, "generations": []}', "unknown format"),
        ("rounds.jsonl", "", "rounds.jsonl has 0 bytes"),
        ("env.json", "", "env.json is missing or corrupt"),
        ("config.toml", None, "the configuration of this run was changed"),
        ("partition.json", "[]", "no partition file"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(done: Path, tmp_path: Path, name: str, content: str | None, words: str) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    text = (run / name).read_text(encoding="utf-8")
    (run / name).write_text(text.replace("lr = 0.01", "lr = 0.02") if content is None else content, encoding="utf-8")
    message = fedquilt("resume", run).complaint(3 if name == "partition.json" else 5)
    assert words in message
    assert str(run) in message


def test_a_run_with_other_leaves_is_neither_resumed_nor_exported(done: Path, tmp_path: Path) -> None:
    """As a version began it that trained less of the model."""
    run = shutil.copytree(done, tmp_path / "run")
    store = Store(run)
    loaded = store.load()
    assert loaded is not None
    hub, books, _ = loaded
    left = {key: x for key, x in hub.bank.items() if key != "classifier/head.bias"}
    assert len(left) < len(hub.bank)
    store.commit(replace(hub, bank=left), {}, books)
    for words in (("resume", run), ("export", run)):
        message = fedquilt(*words).complaint(5)
        assert "another adapter than its configuration stands for (classifier/head.bias)" in message


def test_a_run_is_not_begun_over_another(done: Path, config: Path) -> None:
    before = result(done)
    message = fedquilt("run", config, "--dir", done).complaint(5)
    assert "holds a run already" in message
    assert f"fedquilt resume {done}" in message
    assert differences(result(done), before) == []


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert "no run to resume" in fedquilt("resume", tmp_path).complaint(5)


def test_resuming_a_finished_run_changes_nothing(done: Path, tmp_path: Path) -> None:
    resumed(shutil.copytree(done, tmp_path / "run"), done)


# ---- another process, signals --------------------------------------------------------------------------------------------


def begin(config: Path, run: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a run and wait until it trains."""
    process = start("run", config, "--dir", run, *overrides)
    wait_for(process, lambda: committed(run) >= 1)
    return process


def test_a_directory_in_use_names_who_uses_it(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = begin(config, run, "--set", f"rounds={MANY}")
    try:
        for words in (("resume", run), ("run", config, "--dir", run)):
            message = fedquilt(*words).complaint(5)
            assert "the run directory is in use" in message
            assert f"by process {process.pid} on " in message
    finally:
        process.terminate()
    message = finish(process).complaint(143)
    assert "error: terminated" in message
    assert f"fix: fedquilt resume {run}" in message
    assert Store(run).load(strict=True) is not None
    assert not (run / ".owner").exists()


def test_an_interrupt_says_how_to_resume_and_the_resume_has_the_same_bits(done: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = begin(config, run)
    process.send_signal(signal.SIGINT)
    message = finish(process).complaint(130)
    assert "error: interrupted" in message
    assert f"fix: fedquilt resume {run}" in message
    assert 1 <= committed(run) < ROUNDS
    resumed(run, done)


@pytest.mark.usefixtures("terminal")
def test_a_run_stopped_right_after_its_start_is_not_evaluated_twice(
    short: tuple[Path, Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, config, _ = short
    honest = launch._Log.notice

    def stop(log: launch._Log, number: int, *rest: Any) -> None:
        honest(log, number, *rest)
        if number == 0:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(launch._Log, "notice", stop)
        fedquilt("run", config, "--dir", tmp_path / "run").complaint(130)
    assert committed(tmp_path / "run") == 0
    resumed(tmp_path / "run", done)
