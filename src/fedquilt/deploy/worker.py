"""A client's warm worker: a process that keeps the base model loaded and answers messages on a Unix socket.

    python -m fedquilt.deploy.worker CONFIG CLIENT FOLDER SOCKET [--idle SECONDS]

Whatever carries messages may start a process for each of them; loading torch and a model every time would be most of a round. The
worker ends when nobody has asked for a while. One that died is started anew by the next message, and what it was asked is asked
again: a host answers the same way however often it is asked.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import FileLock, Timeout

from fedquilt.errors import StateError

IDLE = 1800.0  # seconds without a message after which a worker ends
LONGEST_SUM = 86400.0  # seconds that a worker waits, with secrets in its memory, for the slowest client of a sum
START = 600.0  # seconds that a worker has to load its model
TRIES = 3  # of one message
PATIENCE = 2.0  # seconds for another worker to go that is about to
TAKEN = 75  # exit code of a worker that is one too many
LONGEST = 100  # bytes of a socket's path; systems allow 103 or more


def ask(place: Path, data: bytes, start: Callable[[], subprocess.Popen[bytes]]) -> bytes:
    """A message's answer from the worker behind the socket ``place``, which is started if it is not there, and again if it dies.

    Raises:
        StateError: it cannot be started, or dies every time; its log says more.
    """
    if len(os.fsencode(place)) > LONGEST:
        why = f"the path of a socket has at most {LONGEST} bytes"
        raise StateError("a path that is too long for a socket", where=str(place), why=why, fix="choose a shorter folder")
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


def start(config: Path, client: int, folder: Path, place: Path, idle: float = IDLE) -> subprocess.Popen[bytes]:
    """A worker of its own session, which outlives whoever started it."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", __name__, str(config), str(client), str(folder), str(place), "--idle", str(idle)]
    with log_of(place).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


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


def _connected(place: Path) -> Connection:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(place))
        return Connection(asking.detach())


if __name__ == "__main__":
    main()
