"""Workers: the same bits as without, whatever happens to one of them."""

from __future__ import annotations

import os
import signal
from multiprocessing import Pipe
from pathlib import Path
from subprocess import Popen
from threading import Thread
from typing import Any

import pytest
from cases import slow_unless
from door import differences, result
from tiny import tiny_config

from fedquilt import tree
from fedquilt.engine.process import ProcessEngine, Worker, serve
from fedquilt.errors import DataError, FedquiltError
from fedquilt.runs.build import build
from fedquilt.runs.config import RunConfig
from fedquilt.runs.launch import run
from fedquilt.types import Round

# Together all that a job may need beside its row: private heads and fingerprints, optimisers that go on.
CASES: dict[str, dict[str, Any]] = {"fltac": {"adapter": {"head": "private"}}, "centralised_lora": {}}


@pytest.mark.parametrize("method", [slow_unless(method == "fltac", method) for method in CASES])
def test_workers_change_no_bit_of_a_sequential_run(method: str, tmp_path: Path) -> None:
    """Everything but the configuration that names them."""
    one, two = (
        run(tiny_config(tmp_path, method, engine="sequential", workers=n, **CASES[method]), directory=tmp_path / f"run-{n}")
        for n in (1, 2)
    )
    found, wanted = result(two), result(one)
    assert set(differences(found, wanted)) == {"config.toml", "summary"}  # which has the configuration's digest


def config(tmp_path: Path, **overrides: Any) -> RunConfig:
    return tiny_config(tmp_path, "fedit", engine="sequential", workers=2, **overrides)


class Killer(ProcessEngine):
    """Kills worker 0 at its first step, as often as asked."""

    times = 1
    said: list[str]

    def _hear(self, i: int, errand: Any) -> None:
        before = errand.done
        super()._hear(i, errand)
        if i == 0 and errand.done > before and self.times:
            self.times -= 1
            os.kill(self.workers[0].process.pid, signal.SIGKILL)


def trained(config: RunConfig, kind: type[ProcessEngine], **changes: Any) -> tuple[Any, list[int], list[str]]:
    """One round's replies, the steps that were told, and the warnings."""
    told: list[int] = []
    said: list[str] = []
    built = build(config, tick=told.append)
    assert isinstance(built.engine, ProcessEngine)
    engine = kind(built.engine.inner, built.engine.count, built.engine.hire, said.append)
    for name, value in changes.items():
        setattr(engine, name, value)
    hub = built.program.init(built.adapter.init)
    jobs = built.program.plan(hub, engine.roster(1), Round(1, 0))
    try:
        replies = engine.poll(engine.submit(jobs, hub.bank))
    finally:
        engine.close()
        assert not engine.workers
    assert sum(told) == engine.count_steps(jobs)
    return replies, told, said


@pytest.mark.usefixtures("forking")
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """The same bits, every step told once, and a warning."""
    wanted, _, silent = trained(config(tmp_path), ProcessEngine)
    found, _, said = trained(config(tmp_path), Killer)
    assert not silent
    assert len(said) == 1
    assert "signal 9" in said[0]
    for one, other in zip(found, wanted, strict=True):
        assert (one.slot, one.weight, one.extra) == (other.slot, other.weight, other.extra)
        assert tree.equal(one.delta, other.delta)


@pytest.mark.usefixtures("forking")
def test_a_machine_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FedquiltError, match="killed 3 times over the same work") as caught:
        trained(config(tmp_path), Killer, times=9)
    assert "fewer workers" in str(caught.value)


@pytest.mark.usefixtures("forking")
def test_a_worker_that_ends_by_itself_is_not_replaced(tmp_path: Path) -> None:
    """It would end again: here its data has gone. No other worker stays behind."""
    built = build(config(tmp_path))
    assert isinstance(built.engine, ProcessEngine)
    hub = built.program.init(built.adapter.init)
    jobs = built.program.plan(hub, built.engine.roster(1), Round(1, 0))
    (tmp_path / "mood-train.csv").unlink()
    with pytest.raises(FedquiltError, match="ended with exit code 1") as caught:
        built.engine.submit(jobs, hub.bank)
    assert "workers = 1" in str(caught.value)
    assert not built.engine.workers


def test_a_worker_s_error_is_raised_here_with_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(config(tmp_path))
    engine = built.engine
    assert isinstance(engine, ProcessEngine)

    def train(works: Any) -> Any:
        raise DataError("a bad row", where="here", why="for a test", fix="mend it")

    monkeypatch.setattr(engine.inner, "train", train)
    ours, theirs = Pipe()
    thread = Thread(target=serve, args=(theirs, engine.inner), daemon=True)
    thread.start()
    engine.hire = lambda _: Worker(Popen(["true"]), ours)
    hub = built.program.init(built.adapter.init)
    jobs = built.program.plan(hub, engine.roster(1), Round(1, 0))[:1]
    with pytest.raises(DataError) as caught:
        engine.submit(jobs, hub.bank)
    assert str(caught.value) == "a bad row\n  where: here\n  why: for a test\n  fix: mend it"
    thread.join(10)
    assert not thread.is_alive(), "it goes on after its pipe was closed"


@pytest.mark.usefixtures("forking")
def test_whoever_stops_need_not_wait_for_the_workers(tmp_path: Path) -> None:
    """What a tick raises ends training, and the workers with it."""

    class Stop(Exception):
        pass

    def stop(_: int) -> None:
        raise Stop

    built = build(config(tmp_path), tick=stop)
    hired: list[Worker] = []
    assert isinstance(built.engine, ProcessEngine)
    hire = built.engine.hire
    built.engine.hire = lambda i: hired.append(hire(i)) or hired[-1]  # type: ignore[func-returns-value]
    hub = built.program.init(built.adapter.init)
    jobs = built.program.plan(hub, built.engine.roster(1), Round(1, 0))
    with pytest.raises(Stop):
        built.engine.submit(jobs, hub.bank)
    assert len(hired) == 2
    assert all(worker.process.poll() is not None for worker in hired), "a worker is still there"
