"""Flower's programs: how they are called, and that all of them end."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedquilt.deploy.project import REGISTERED, registered
from fedquilt.errors import StateError
from fedquilt.runs.atomic import write_atomic

PATIENCE = 120.0  # seconds for something to come up or to end
NAME = "fedquilt"  # of the one connection in Flower's own configuration


@dataclass
class Home:
    """A folder for what Flower keeps of its own: nothing of it is shared with other uses of Flower, and nothing phones home."""

    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # Flower starts its parts by name
        self.env = {**os.environ, **quiet, "FLWR_HOME": str(self.folder.resolve()), "PATH": path}

    def connect(self, port: int, ca: Path) -> None:
        """Say where the SuperLink of this machine is."""
        text = f'[superlink.{NAME}]\naddress = "127.0.0.1:{port}"\nroot-certificates = {json.dumps(str(ca.resolve()))}\n'
        (self.folder / "config.toml").write_text(text, encoding="utf-8")

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A program in a process group of its own, so that all of it can be ended."""
        return subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, start_new_session=True)

    def flwr(self, *words: str) -> str:
        """A command of Flower's, to its end.

        Raises:
            StateError: it failed.
        """
        done = subprocess.run(["flwr", *words], env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            why = (done.stdout + done.stderr).strip()[-500:]
            raise StateError(f"flwr {' '.join(words)} ended with {done.returncode}", where=str(self.folder), why=why)
        return done.stdout

    def listed(self, *words: str) -> dict[str, Any]:
        """What a command of Flower's says as JSON."""
        found: dict[str, Any] = json.loads(self.flwr(*words, NAME, "--format", "json"))
        if not found.get("success"):
            why = str(found.get("error-message", ""))[:500]
            raise StateError(f"flwr {' '.join(words)} failed", where=str(self.folder), why=why)
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """The SuperNodes that the SuperLink knows, with the names that they were registered by."""
        names = {entry["node"]: name for name, entry in registered(self.folder / REGISTERED).items()}
        nodes: list[dict[str, Any]] = self.listed("supernode", "list").get("nodes", [])
        return [{"name": names.get(entry["node-id"], ""), **entry} for entry in nodes]

    def register(self, keys: Sequence[Path]) -> list[str]:
        """Let in whoever has the private key to one of these; names of those that were not let in before."""
        known, added = registered(self.folder / REGISTERED), []
        for key in keys:
            digest = hashlib.sha256(key.read_bytes()).hexdigest()
            if known.get(key.stem, {}).get("key") == digest:
                continue
            said = json.loads(self.flwr("supernode", "register", str(key), NAME, "--name", key.stem, "--format", "json"))
            known[key.stem] = {"node": str(said["node-id"]), "key": digest}
            added.append(key.stem)
        write_atomic(self.folder / REGISTERED, json.dumps(known).encode())
        return added

    def runs(self) -> list[dict[str, Any]]:
        """The runs that the SuperLink knows."""
        runs: list[dict[str, Any]] = self.listed("list").get("runs", [])
        return runs

    def simulate(self, app: Path, settings: Mapping[str, Any], clients: int, patience: float) -> subprocess.CompletedProcess[str]:
        """Run the app in Flower's own simulation, on Ray, to its end, a core per client at a time; nothing of it is left. In a home
        of its own: it says where the SuperLink is."""
        (self.folder / "config.toml").write_text(f'[superlink.{NAME}]\naddress = ":local:"\n', encoding="utf-8")
        size = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus={min(clients, os.cpu_count() or 1)}"
        # Ports of its own: else it would run on the local SuperLink of whoever has one, and end that.
        ports = {f"FLWR_LOCAL_{name}_PORT": str(free_port()) for name in ("SUPERLINK_HTTP_API", "CONTROL_API")}
        env = {**self.env, **ports, "RAY_USAGE_STATS_ENABLED": "0"}
        command = [*submission(app, settings), "--federation-config", size]
        try:
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=patience, check=False)
        finally:
            self.end()

    def end(self) -> None:
        """End all processes of this home: Flower's children outlive their parents, and so do workers."""
        end("FLWR_HOME", self.env["FLWR_HOME"])


def with_environment(name: str, value: str) -> dict[int, str]:
    """Processes whose environment says so, and their commands; none where there is no /proc."""
    found: dict[int, str] = {}
    if not Path("/proc").is_dir():
        return found
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if entry.name.isdigit() and f"{name}={value}\0".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def end(name: str, value: str) -> None:
    """End all processes whose environment says so, but this one."""
    finish = time.monotonic() + PATIENCE
    while (left := with_environment(name, value).keys() - {os.getpid()}) and time.monotonic() < finish:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def link(own: Path, database: Path, port: int) -> list[str]:
    """The SuperLink's command: with node authentication, on this machine alone. ``own``: folder of the certificates."""
    files = [f"--ssl-ca-certfile={own / 'ca.crt'}", f"--ssl-certfile={own / 'server.pem'}", f"--ssl-keyfile={own / 'server.key'}"]
    more = ["--enable-supernode-auth", f"--database={database}", "--disable-runtime-dependency-installation"]
    return ["flower-superlink", *files, *more, "--host=127.0.0.1", f"--port={port}"]


def node(ca: Path, key: Path, server: str, settings: Mapping[str, Any]) -> list[str]:
    """A SuperNode's command. ``settings``: what the client's app reads."""
    keys = [f"--root-certificates={ca}", f"--auth-supernode-private-key={key}"]
    return [
        "flower-supernode",
        f"--superlink={server}",
        "--host=127.0.0.1",
        f"--port={free_port()}",
        *keys,
        f"--node-config={_words(settings)}",
    ]


def submission(app: Path, settings: Mapping[str, Any]) -> list[str]:
    """The command that starts a run and shows what its server's app says."""
    return ["flwr", "run", str(app), NAME, "--stream", "-c", _words(settings)]


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether somebody does, on this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_link(process: subprocess.Popen[bytes], port: int, where: Path, log: str = "") -> None:
    """Until the SuperLink listens.

    Raises:
        StateError: it ended, or does not begin.
    """
    finish = time.monotonic() + PATIENCE
    while not listening(port):
        if process.poll() is not None or time.monotonic() > finish:
            raise StateError(
                "the SuperLink did not start", where=str(where), why=log or "it said why above", fix="is the port free?"
            )
        time.sleep(0.1)
