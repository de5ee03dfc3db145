"""A whole deployment on one machine: a server and its clients as they run on several, and the end of all of it.

What a deployment does is seen here before there are machines for it; the tests and the benchmark run on it. Linux only: processes
are found by their environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedquilt.deploy.flower.network import PATIENCE, end, free_port, listening, submission, with_environment
from fedquilt.deploy.flower.parties import home_of
from fedquilt.deploy.project import write
from fedquilt.errors import StateError

MARK = "FEDQUILT_REHEARSAL"


class Rehearsal:
    """Use as a context; every process that it starts, and every worker, ends with it.

    Args:
        nodes: settings of each client; see :class:`fedquilt.deploy.settings.ClientSettings`.
    """

    def __init__(self, folder: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self.settings = folder, nodes
        self.port, self.control = free_port(), free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.submitted: subprocess.Popen[bytes] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.project = folder / "project"
        self.env = {**os.environ, MARK: str(folder)}

    def __enter__(self) -> Rehearsal:
        write(self.project, ["127.0.0.1"], len(self.settings))
        said = {"listen": "127.0.0.1", "port": self.port, "control": self.control}
        (self.project / "server" / "server.toml").write_text(tomli_w.dumps(said), encoding="utf-8")
        try:
            self.start_server()
            for number in range(len(self.settings)):
                self.start_node(number)
        except BaseException:
            self.__exit__()  # the context is not entered yet
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(MARK, str(self.folder))
        for process in [*self.nodes.values(), self.server, self.submitted]:
            if process:
                process.wait()

    def processes(self) -> dict[int, str]:
        """All that belong to the network."""
        return with_environment(MARK, str(self.folder))

    def start_server(self) -> None:
        """``fedquilt server``; comes back when it lets clients in. One that was killed before is gone by then."""
        if self.server:
            self.server.wait(PATIENCE)
        self.server = self._start("server", "server", str(self.project / "server"))
        finish = time.monotonic() + PATIENCE
        while not listening(self.port):
            if self.server.poll() is not None or time.monotonic() > finish:
                raise StateError("the server did not start", where=str(self.folder), why=self.said("server")[-1000:])
            time.sleep(0.1)

    def start_node(self, number: int, changes: Mapping[str, Path] | None = None) -> None:
        """``fedquilt client``; ``changes``: another file in the place of node or ca.crt."""
        if number in self.nodes:
            self.nodes[number].wait(PATIENCE)
        own = self.project / f"client-{number}"
        own.mkdir(exist_ok=True)
        said = {"server": f"127.0.0.1:{self.port}", **self.settings[number]}
        (own / "client.toml").write_text(tomli_w.dumps(said), encoding="utf-8")
        for name, path in (changes or {}).items():
            (own / name).write_bytes(path.read_bytes())
        self.nodes[number] = self._start(f"node{number}", "client", str(own))

    def run(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Submit the app; its output streams until the run has ended."""
        if self.submitted:
            self.submitted.wait(PATIENCE)
        home, app = home_of(self.project / "server"), self.project / "server" / "app"
        with (self.folder / "run.log").open("ab") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.submitted = subprocess.Popen(submission(app, settings), env={**self.env, **home.env}, **options)
        return self.submitted

    def said(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fedquilt", *words]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
