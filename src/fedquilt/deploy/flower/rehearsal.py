"""A whole deployment on one machine: a SuperLink and some SuperNodes over TLS with node authentication, and the end of all of it.

What a deployment does is seen here before there are machines for it; the tests and the benchmark run on it. Linux only: processes
are found by their environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedquilt.deploy.project import write
from fedquilt.errors import StateError

PATIENCE = 120.0  # seconds for something to come up


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Rehearsal:
    """Use as a context; every process that it starts, and every worker, ends with it.

    Args:
        nodes: settings of each SuperNode.
    """

    def __init__(self, folder: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self.settings = folder, nodes
        self.port = free_port()
        self.link: subprocess.Popen[bytes] | None = None
        self.submitted: subprocess.Popen[bytes] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.project = folder / "project"
        home = folder / "home"
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # Flower starts its parts by name
        self.env = {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": path}

    def __enter__(self) -> Rehearsal:
        write(self.project, ["127.0.0.1"], len(self.settings))
        home = Path(self.env["FLWR_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        ca = self.project / "server" / "ca.crt"
        (home / "config.toml").write_text(
            f'[superlink.test]\naddress = "127.0.0.1:{self.port}"\nroot-certificates = "{ca}"\n', encoding="utf-8"
        )
        try:
            self.start_link()
            for number in range(len(self.settings)):
                key = self.project / f"client-{number}" / "node.pub"
                self.flwr("supernode", "register", str(key), "test", "--name", f"node{number}")
                self.start_node(number)
        except BaseException:
            self.__exit__()  # the context is not entered yet
            raise
        return self

    def __exit__(self, *_: object) -> None:
        finish = time.monotonic() + PATIENCE
        while (left := self.processes()) and time.monotonic() < finish:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in [*self.nodes.values(), self.link, self.submitted]:
            if process:
                process.wait()

    def processes(self) -> dict[int, str]:
        """All that belong to the network, by their environment: Flower's children outlive their parents, and so do workers."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):  # it ended meanwhile, or is another user's
                if entry.name.isdigit() and f"FLWR_HOME={self.env['FLWR_HOME']}\0".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def start_link(self) -> None:
        """The SuperLink; comes back when it listens."""
        own = self.project / "server"
        files = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        files = [str(own / word) if "." in word else word for word in files]
        more = ["--enable-supernode-auth", "--database", str(self.folder / "state.db"), "--disable-runtime-dependency-installation"]
        self.link = self._start("link", "flower-superlink", *files, *more, "--host", "127.0.0.1", "--port", str(self.port))
        finish = time.monotonic() + PATIENCE
        while time.monotonic() < finish:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.link.poll() is not None:
                break
            time.sleep(0.1)
        raise StateError("the SuperLink did not start", where=str(self.folder / "link.log"), why=self.said("link")[-500:])

    def start_node(self, number: int, **changes: str) -> None:
        """A SuperNode; ``changes``: key or ca, another file."""
        own = self.project / f"client-{number}"
        files = {"key": str(own / "node"), "ca": str(own / "ca.crt")} | changes
        node_config = " ".join(f"{key}={json.dumps(value)}" for key, value in self.settings[number].items())
        where = ["--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1", "--port", str(free_port())]
        keys = ["--root-certificates", files["ca"], "--auth-supernode-private-key", files["key"]]
        self.nodes[number] = self._start(f"node{number}", "flower-supernode", *where, *keys, "--node-config", node_config)

    def run(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Submit the app; its output streams until the run has ended."""
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        self.submitted = self._start("run", "flwr", "run", str(self.project / "app"), "test", "--stream", "-c", given)
        return self.submitted

    def flwr(self, *words: str) -> str:
        """A command of Flower's, to its end."""
        done = subprocess.run(["flwr", *words], env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            why = (done.stdout + done.stderr)[-500:]
            raise StateError(f"flwr {' '.join(words)} ended with {done.returncode}", where=str(self.folder), why=why)
        return done.stdout

    def said(self, name: str) -> str:
        """What a process has written."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
