"""Processes that are forked from one which has imported everything: seconds less for each than a new interpreter."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import IO

PRELOAD = [
    "fedquilt.runs.launch",
    "fedquilt.deploy.build",
    "fedquilt.models.packed",
    "peft",
    "transformers.models.bert",
    "datasets",
]


class Fork:
    """What is used here of :class:`subprocess.Popen`.

    Args:
        program: called with ``words``; what it returns is the exit code.
        passed: file descriptors of this process that it gets. They have other numbers there, in ``words`` too.
        env: its environment; None: this one.
    """

    def __init__(
        self,
        program: Callable[[list[str]], int | None],
        words: Sequence[str],
        *,
        out: IO[bytes] | None = None,
        passed: Sequence[int] = (),
        alone: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOAD)
        # A descriptor travels as a connection, which knows how to be sent.
        sent = {str(fd): Connection(os.dup(fd)) for fd in passed}
        log = Connection(os.dup(out.fileno())) if out else None
        told = (program, list(words), sent, log, alone, dict(os.environ if env is None else env))
        self.process = server.Process(target=_child, args=told, daemon=True)
        self.process.start()
        for one in (*sent.values(), *([log] if log else [])):
            one.close()

    @property
    def pid(self) -> int:
        """The process' number."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        self.process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def module(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool,
    env: Mapping[str, str] | None,
) -> Fork:
    """In place of ``Popen([sys.executable, "-m", MODULE, ...])``, as our own modules start theirs: ``main()`` of the module."""
    python, option, name, *words = command
    assert (python, option, stdin) == (sys.executable, "-m", subprocess.DEVNULL)
    assert stdout is stderr
    return Fork(partial(_main, name), words, out=stdout, passed=pass_fds, alone=start_new_session, env=env)


def _main(name: str, words: list[str]) -> None:
    sys.argv = [name, *words]
    import_module(name).main()


def _child(
    program: Callable[[list[str]], int | None],
    words: list[str],
    sent: dict[str, Connection],
    log: Connection | None,
    alone: bool,
    env: dict[str, str],
) -> None:
    if alone:
        os.setsid()
    if log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    sys.exit(program([str(sent[word].fileno()) if word in sent else word for word in words]))


FORKING = SimpleNamespace(Popen=module, DEVNULL=subprocess.DEVNULL)
"""What to put in the place of ``subprocess`` in one of our modules."""
