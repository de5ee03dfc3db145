"""A server and a client as processes that stay: Flower's programs, with what fedquilt adds to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from fedquilt.deploy.flower import front
from fedquilt.deploy.flower.network import Home, end, link, listening, node, submission, wait_for_link
from fedquilt.deploy.project import REGISTERED
from fedquilt.deploy.settings import ClientSettings, ServerSettings, read
from fedquilt.deploy.worker import MARK, Station
from fedquilt.errors import StateError
from fedquilt.runs.config import RunConfig

GRACE = 10.0  # seconds for a program to end when it is asked to
PAUSE = 5.0  # seconds until a client tries again to connect
TERMINATED = 143


def home_of(folder: Path) -> Home:
    """Flower's own folder in that of a machine."""
    return Home(folder / "home")


def keys(folder: Path) -> list[Path]:
    """Public keys of the clients that a server lets in."""
    return sorted((folder / "clients").glob("*.pub"))


def serve(folder: Path, settings: ServerSettings, say: Callable[[str], None]) -> None:
    """The SuperLink behind its door, until it is told to end.

    Raises:
        StateError: a port is taken, or the SuperLink ended.
    """
    for port in (settings.port, settings.control):
        if listening(port):
            fix = "end the other program, or change server.toml"
            raise StateError(f"port {port} is taken", where=str(folder / "server.toml"), fix=fix)
    home = home_of(folder)
    home.connect(settings.control, folder / "ca.crt")
    with _running(home, *link(folder, folder / "state.db", settings.control)) as process:
        wait_for_link(process, settings.control, folder)
        for name in home.register(keys(folder)):
            say(f"registered: {name}")
        say(f"clients are let in on port {settings.port}; port {settings.control} is for this machine alone")
        door = uvicorn.Server(front.configured(folder, settings.listen, settings.port, settings.control))

        def watch() -> None:
            process.wait()
            door.should_exit = True

        threading.Thread(target=watch, daemon=True).start()
        door.run()
        if process.poll() is not None:
            raise StateError("the SuperLink ended", where=str(folder), why=f"with {process.returncode}", fix="it said why above")


def join(folder: Path, settings: ClientSettings, config: Path, say: Callable[[str], None]) -> None:
    """A SuperNode, until this process is told to end. One that ends by itself is started again: the server may not be there yet, or
    may take the one before, which was killed, for connected still. The worker loads the model meanwhile, once. ``config``: with
    this machine's data."""
    state = folder / settings.state
    said = {"client": settings.client, "config": str(config), "state": str(state), "idle": settings.idle}
    said |= {"sockets": str(folder / settings.sockets)} if settings.sockets else {}
    end(MARK, str(state))  # a worker of one before, that was killed
    # The worker is none of Flower's: it stays when a SuperNode has to be started again.
    with _told_to_end(), Station.of(said).warm(say):
        while True:
            with _running(home_of(folder), *node(folder / "ca.crt", folder / "node", settings.server, said)) as process:
                code = process.wait()
            say(f"not connected any more ({code}); again in {PAUSE:.0f} s")
            time.sleep(PAUSE)


def need_server(folder: Path) -> ServerSettings:
    """The settings of the server in this folder; raise if it is not running."""
    settings = read(folder / "server.toml", ServerSettings)
    if not listening(settings.control):
        raise StateError("the server is not there", where=str(folder), fix=f"fedquilt server {folder}")
    return settings


def start_run(folder: Path, config: RunConfig, run: Path, clients: int, deadline: float) -> tuple[subprocess.Popen[bytes], Path]:
    """Submit a run to the server in ``folder``, new or to be continued; what carries its output, and the file of that."""
    home = home_of(folder)
    home.register(keys(folder))
    place = home.folder / "runs"
    place.mkdir(exist_ok=True)
    path, log = place / f"{config.name}.toml", place / f"{config.name}.log"
    path.write_text(config.to_toml(), encoding="utf-8")
    settings = {"config": str(path), "directory": str(run), "clients": clients, "deadline": deadline}
    settings["registered"] = str(home.folder / REGISTERED)
    with log.open("wb") as output:
        command = submission(folder / "app", settings)
        options: dict[str, Any] = {"env": home.env, "stdin": subprocess.DEVNULL, "start_new_session": True}
        return subprocess.Popen(command, stdout=output, stderr=output, **options), log


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Signals that end this process let it clean up."""
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _running(home: Home, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with this process, however that ends, and everything that it started."""
    home.end()  # what one before, that was killed, has left
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    process = home.start(*command)
    try:
        yield process
    finally:
        for number in before:  # who is impatient now would leave processes behind
            signal.signal(number, signal.SIG_IGN)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        home.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(*_: int | FrameType | None) -> None:
    sys.exit(TERMINATED)
