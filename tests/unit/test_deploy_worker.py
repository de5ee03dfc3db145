"""The warm worker: one process, one socket, the same answers as a host that is asked directly."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread, Timer

import pytest
from door import differences, result
from filelock import FileLock
from tiny import tiny_config

from fedquilt.deploy import worker
from fedquilt.deploy.build import host, remote
from fedquilt.deploy.loopback import Loopback
from fedquilt.deploy.messages import Train
from fedquilt.deploy.parcel import parcel, unpack
from fedquilt.deploy.remote import Remote
from fedquilt.deploy.worker import TAKEN, ask, log_of, serve, start
from fedquilt.errors import StateError
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config
from fedquilt.runs.launch import run


class Station:
    """A client's machine: its configuration and socket, and every worker that was started for it."""

    def __init__(self, config: Path, client: int, folder: Path, idle: float = 120.0) -> None:
        self.config, self.client, self.folder, self.idle = config, client, folder, idle
        self.socket = folder / "socket" / "w"
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        self.workers.append(start(self.config, self.client, self.folder / "state", self.socket, self.idle))
        return self.workers[-1]

    def ask(self, data: bytes) -> bytes:
        return ask(self.socket, data, self.start)

    def end(self) -> None:
        for one in self.workers:
            one.kill()
            one.wait()


@pytest.fixture
def station(short: Path) -> Iterator[Station]:
    """Client 0 of a tiny run; no worker outlives the test."""
    config = short / "config.toml"
    config.write_text(tiny_config(short, "fedit", rounds=3, engine="sequential").to_toml(), encoding="utf-8")
    one = Station(config, 0, short)
    yield one
    one.end()


@pytest.mark.usefixtures("forking")
def test_a_run_through_a_worker_that_is_killed_has_the_same_bits(station: Station, tmp_path: Path) -> None:
    """Client 0 behind its worker, the others asked directly; killed before round 2, and while it answers in round 3."""
    chosen = load_config(station.config)
    built = build(chosen)
    hosts = {client: host(built, client, tmp_path / str(client)) for client in (1, 2, 3)}
    rounds: list[int] = []

    def through(data: bytes) -> bytes:
        rounds.append(int(unpack(data, 1 << 30).said.get("round", 0)))
        one = station.workers[-1] if station.workers else None
        if rounds[-1] == 2 and one:
            one.kill()
            one.wait()
        if rounds[-1] == 3 and one:
            os.kill(one.pid, signal.SIGSTOP)  # so that the message is under way when it dies
            Timer(0.3, one.kill).start()
        return station.ask(data)

    transport = Loopback({0: through, **{client: one.answer for client, one in hosts.items()}})

    def engine(built: Built) -> Remote:
        made = remote(built, transport, "0" * 32)
        made.meet()
        return made

    found = run(chosen, directory=tmp_path / "run", engine=engine)
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(found), result(here)) == []
    assert rounds == [0, 1, 2, 3]
    assert len(station.workers) == 3, "one answered the first two messages, each that was killed was replaced"
    assert stat.S_IMODE(station.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(station.socket.parent.stat().st_mode) == 0o700


def test_one_worker_per_socket_which_ends_when_nobody_asks(station: Station) -> None:
    station.idle = 8.0
    refused = parcel(Train(run="0" * 32, pins="of others", round=1, asks=[])).pack()
    assert b"another configuration" in station.ask(refused)
    assert start(station.config, 0, station.folder / "state", station.socket, 1.0).wait(60) == TAKEN
    assert b"another configuration" in station.ask(refused)
    assert len(station.workers) == 1
    assert station.workers[0].wait(60) == 0
    assert not station.socket.exists()


@pytest.mark.usefixtures("forking")
def test_a_worker_that_cannot_start_says_where_it_says_why(station: Station) -> None:
    station.config.write_text("rounds = 'many'", encoding="utf-8")
    with pytest.raises(StateError, match="the worker did not start") as caught:
        station.ask(b"")
    assert str(log_of(station.socket)) in str(caught.value)
    assert "rounds" in log_of(station.socket).read_text(encoding="utf-8")


def said(lines: list[str]) -> str:
    end = time.monotonic() + 60
    while not lines:
        assert time.monotonic() < end
        time.sleep(0.05)
    (line,) = lines
    return line


def connected(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(place)) == 0


def own(station: Station, idle: float = 20.0) -> worker.Station:
    return worker.Station(station.config, 0, station.folder / "state", station.folder / "socket", idle)


@pytest.mark.usefixtures("forking")
def test_a_worker_is_there_before_anybody_asks(station: Station) -> None:
    """It says so only when it answers: the socket of one that was killed is no sign of it. It ends with the block."""
    one, lines = own(station), list[str]()
    one.place.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(one.place))
    with one.warm(lines.append):
        assert said(lines) == "the base model is loaded"
        pid = int(one.place.with_suffix(".pid").read_text(encoding="ascii"))
        refused = parcel(Train(run="0" * 32, pins="of others", round=1, asks=[])).pack()
        assert b"another configuration" in one.ask(refused)
        assert int(one.place.with_suffix(".pid").read_text(encoding="ascii")) == pid
    end = time.monotonic() + 10
    while connected(one.place):
        assert time.monotonic() < end, "it outlives the block"
        time.sleep(0.05)


@pytest.mark.usefixtures("forking")
def test_where_another_worker_is_loading_that_one_is_waited_for(station: Station) -> None:
    one, lines = own(station), list[str]()
    one.place.parent.mkdir(mode=0o700)
    with FileLock(one.place.with_suffix(".lock")), one.warm(lines.append), socket.socket(socket.AF_UNIX) as other:
        time.sleep(worker.PATIENCE + 4)  # long enough for it to have given up
        assert not lines
        other.bind(str(one.place))
        other.listen()
        assert said(lines) == "the base model is loaded"


@pytest.mark.usefixtures("forking")
def test_what_a_worker_lacks_is_said_before_anybody_asks(station: Station) -> None:
    text = station.config.read_text(encoding="utf-8")
    station.config.write_text(text.replace("rounds = 3", "rounds = 'many'"), encoding="utf-8")
    one, lines = worker.Station.of({"config": str(station.config), "client": 0, "state": str(station.folder)}), list[str]()
    with one.warm(lines.append):
        line = said(lines)
    assert line.startswith("this client cannot train: error: "), line
    assert "rounds" in line
    assert "integer" in line
    assert str(station.folder / "worker") in line


def test_a_worker_that_is_killed_while_it_loads_is_said(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most often for want of memory. When the client itself ends it, there is nothing to say."""
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    monkeypatch.setattr(worker, "start", lambda *_: subprocess.Popen(killed))
    lines = list[str]()
    (station.folder / "socket").mkdir()
    log_of(own(station).place).touch()
    with own(station).warm(lines.append):
        assert "ended by signal 9: is there enough memory?" in said(lines)
    monkeypatch.setattr(worker, "start", lambda *_: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    lines.clear()
    with own(station).warm(lines.append):
        pass
    time.sleep(0.5)
    assert not lines


def test_folders_that_cannot_be_made_are_an_error(station: Station) -> None:
    (station.folder / "file").touch()
    one = worker.Station(station.config, 0, station.folder / "state", station.folder / "file" / "socket")
    with pytest.raises(StateError, match="the worker cannot be started"), one.warm(print):
        pass


def test_a_change_of_what_is_extended_is_another_worker_s_also_behind_a_byte_order_mark(tmp_path: Path) -> None:
    base, config = tmp_path / "base.toml", tmp_path / "config.toml"
    config.write_text('extends = "base.toml"\n', encoding="utf-8-sig")
    one = worker.Station(config, 0, tmp_path, tmp_path)
    places = []
    for rounds in (1, 2):
        base.write_text(f"rounds = {rounds}\n", encoding="utf-8-sig")
        places += [one.place, one.place]
    assert places[0] == places[1] != places[2] == places[3]


def test_a_socket_s_path_has_a_length(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="too long for a socket"):
        ask(tmp_path / ("x" * 300), b"", lambda: start(tmp_path / "c", 0, tmp_path, tmp_path / ("x" * 300)))
    (tmp_path / "c").write_text("", encoding="utf-8")
    far = worker.Station(tmp_path / "c", 0, tmp_path, tmp_path / ("x" * 300))
    with pytest.raises(StateError, match="too long for a socket"), far.warm(print):
        pass


def test_a_worker_in_the_middle_of_a_sum_waits_for_the_slowest(tmp_path: Path) -> None:
    """Its secrets are in its memory alone: it must not end because the others take longer than it is idle otherwise."""
    place, under_way = tmp_path / "w", [True]

    def answer(data: bytes) -> bytes:
        under_way[0] = data != b"the last"
        return data

    serving = Thread(target=serve, args=(place, answer, 0.05, lambda: under_way[0]), daemon=True)
    serving.start()
    while not place.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    for data in (b"first", b"the last"):
        assert ask(place, data, lambda: pytest.fail("it has ended")) == data
        time.sleep(0.2)
    serving.join(5)
    assert not serving.is_alive(), "nobody asks any more"
