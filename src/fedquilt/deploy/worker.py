"""A client's warm worker: a process that keeps the base model loaded and answers messages on a Unix socket.

    python -m fedquilt.deploy.worker CONFIG CLIENT FOLDER SOCKET [--idle SECONDS]

Whatever carries messages may start a process for each of them; loading torch and a model every time would be most of a round. The
worker ends when nobody has asked for a while. One that died is started anew by the next message, and what it was asked is asked
again: a host answers the same way however often it is asked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from fedquilt import __version__
from fedquilt.deploy.said import last_error
from fedquilt.errors import FedquiltError, StateError
from fedquilt.runs.toml import tables

IDLE = 1800.0  # seconds without a message after which a worker ends
LONGEST_SUM = 86400.0  # seconds that a worker waits, with secrets in its memory, for the slowest client of a sum
START = 600.0  # seconds that a worker has to load its model
TRIES = 3  # of one message
PATIENCE = 2.0  # seconds for another worker to go that is about to
TAKEN = 75  # exit code of a worker that is one too many
MARK = "FEDQUILT_CLIENT"  # in a worker's environment: the folder of its client's state
LONGEST = 100  # bytes of a socket's path; systems allow 103 or more


@dataclass(frozen=True)
class Station:
    """A client's machine: where its worker is, and how it is started.

    Args:
        config: the run's, with this machine's tasks.
        state: folder of what this client keeps.
        sockets: folder of the worker's socket.
        idle: see :func:`serve`.
    """

    config: Path
    client: int
    state: Path
    sockets: Path
    idle: float = IDLE

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Self:
        """From the settings of a node: ``config``, ``client``, ``state``, and perhaps ``sockets`` and ``idle``."""
        state = Path(str(said["state"]))
        sockets = Path(str(said["sockets"])) if "sockets" in said else state / "worker"
        return cls(Path(str(said["config"])), int(said["client"]), state, sockets, float(said.get("idle", IDLE)))

    @property
    def place(self) -> Path:
        """The socket. After a change of the configuration the next message finds another one, and the old worker ends idle."""
        digest = hashlib.sha256(f"{__version__} {self.client} ".encode())
        for text in _texts(self.config):
            digest.update(text)
        return self.sockets / digest.hexdigest()[:12]

    def ask(self, data: bytes) -> bytes:
        """See :func:`ask`."""
        place = self.place
        return ask(place, data, lambda: self._start(place))

    @contextmanager
    def warm(self, say: Callable[[str], None]) -> Iterator[None]:
        """Inside the block there is a worker before anybody asks, which ends with the block. It is said in a while that it is
        there, or why not: who has just typed a path sees now whether it is right.

        Raises:
            StateError: it cannot be started.
        """
        try:
            place = self.place
            _must_fit(place)
            log = log_of(place)
            before = log.stat().st_size if log.exists() else 0
            process = self._start(place)
        except OSError as error:
            why, fix = error.strerror or str(error), "see state and sockets in client.toml"
            raise StateError("the worker cannot be started", where=str(error.filename or self.state), why=why, fix=fix) from error
        ending = threading.Event()

        def watch() -> None:
            end = time.monotonic() + START
            while process.poll() in (None, TAKEN) and time.monotonic() < end:
                with suppress(FileNotFoundError, ConnectionRefusedError):
                    _connected(place).close()
                    say("the base model is loaded")
                    process.wait()  # nobody else does, and it would stay a zombie
                    return
                time.sleep(0.1)
            if not ending.is_set() and process.poll() != 0:  # 0: idle already
                say(f"this client cannot train: {_why(process.poll(), log.read_bytes()[before:])}\n(from {log})")

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ending.set()
            process.kill()

    def _start(self, place: Path) -> subprocess.Popen[bytes]:
        return start(self.config, self.client, self.state / "rounds", place, self.idle, {**os.environ, MARK: str(self.state)})


def _why(code: int | None, said: bytes) -> str:
    """What a worker that ended, or does not answer (None), died of. ``said``: in its log."""
    if code in (None, TAKEN):
        return f"its worker does not answer after {START:.0f} seconds"
    if code is not None and code < 0:
        return f"its worker was ended by signal {-code}: is there enough memory?"
    return last_error(said.decode(errors="replace").strip().splitlines(), 1) or "no reason given"


def _texts(config: Path) -> Iterator[bytes]:
    """A configuration's file, and those that it extends."""
    text = config.read_bytes()
    yield text
    parent = tables(text, config, "the config file").get("extends")
    if parent is not None:
        yield from _texts(config.parent / str(parent))


def ask(place: Path, data: bytes, start: Callable[[], subprocess.Popen[bytes]]) -> bytes:
    """A message's answer from the worker behind the socket ``place``, which is started if it is not there, and again if it dies.

    Raises:
        StateError: it cannot be started, or dies every time; its log says more.
    """
    _must_fit(place)
    for _ in range(TRIES):
        try:
            with _reached(place, start) as pipe:
                pipe.send_bytes(data)
                return pipe.recv_bytes()
        except (EOFError, ConnectionError):
            continue
    raise StateError(f"the worker ended {TRIES} times over one message", where=str(log_of(place)), fix="read its log")


def log_of(place: Path) -> Path:
    """Where a worker says what went wrong."""
    return place.with_suffix(".log")


def start(
    config: Path, client: int, folder: Path, place: Path, idle: float = IDLE, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A worker of its own session, which outlives whoever started it."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", __name__, str(config), str(client), str(folder), str(place), "--idle", str(idle)]
    with log_of(place).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=env)


def serve(place: Path, answer: Callable[[bytes], bytes], idle: float, busy: Callable[[], bool] = lambda: False) -> None:
    """Answer one message after the other until none has come for ``idle`` seconds, or :data:`LONGEST_SUM` while ``busy``."""
    with socket.socket(socket.AF_UNIX) as listener, suppress(TimeoutError):
        before = os.umask(0o177)  # this user's alone
        try:
            listener.bind(str(place))
        finally:
            os.umask(before)
        listener.listen()
        while True:
            listener.settimeout(max(idle, LONGEST_SUM) if busy() else idle)
            asking, _ = listener.accept()
            with suppress(EOFError, ConnectionError), Connection(asking.detach()) as pipe:
                pipe.send_bytes(answer(pipe.recv_bytes()))


def main() -> None:
    """The worker's program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("client", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--idle", type=float, default=IDLE)
    arguments = parser.parse_args()
    try:
        with FileLock(arguments.socket.with_suffix(".lock"), timeout=PATIENCE):
            arguments.socket.unlink(missing_ok=True)  # of one that was killed: who holds the lock is the only one
            arguments.socket.with_suffix(".pid").write_text(str(os.getpid()), encoding="ascii")
            from fedquilt.deploy.build import host
            from fedquilt.runs.build import build
            from fedquilt.runs.config import load_config

            one = host(build(load_config(arguments.config), client=arguments.client), arguments.client, arguments.folder)
            try:
                serve(arguments.socket, one.answer, arguments.idle, lambda: one.party is not None)
            finally:
                arguments.socket.unlink(missing_ok=True)
    except Timeout:
        sys.exit(TAKEN)  # another one is there, or still loading
    except FedquiltError as error:
        sys.exit(f"error: {error}")


def _reached(place: Path, start: Callable[[], subprocess.Popen[bytes]]) -> Connection:
    """A connection to the worker, when it is ready."""
    with suppress(FileNotFoundError, ConnectionRefusedError):
        return _connected(place)
    process, end = start(), time.monotonic() + START
    while time.monotonic() < end and process.poll() in (None, 0, TAKEN):
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return _connected(place)
        if process.poll() is not None:  # idle already, or another one was there, and may be gone by now
            process = start()
        time.sleep(0.05)
    raise StateError("the worker did not start", where=str(log_of(place)), fix="read its log")


def _must_fit(place: Path) -> None:
    if len(os.fsencode(place)) > LONGEST:
        why = f"the path of a socket has at most {LONGEST} bytes"
        raise StateError("a path that is too long for a socket", where=str(place), why=why, fix="choose a shorter folder")


def _connected(place: Path) -> Connection:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(place))
        return Connection(asking.detach())


if __name__ == "__main__":
    main()
