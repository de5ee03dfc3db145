"""The user's door: the command line in this process or in one of its own, what it says, and what a run leaves behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import tiny_config

from fedquilt.cli import main
from fedquilt.runs.store import JOURNALS, read_manifest

# As from a terminal: started in the background of a script, a process inherits that interrupts are ignored.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = (sys.executable, "-c", f"{LISTEN}; import sys; from fedquilt.cli import main; sys.exit(main())")
PATIENCE = 120.0  # seconds until a process that does not do what it should is given up


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    def complaint(self, code: int) -> str:
        """The one error message, which must be the last thing said, name what, where and fix, and show no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        begins = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        assert len(begins) == 1, self.err
        what, *rest = lines[begins[0] :]
        assert len(what) > len("error: ")
        assert all(line.startswith("  ") for line in rest), self.err
        names = [line.strip().partition(":")[0] for line in rest]
        assert {"where", "fix"} <= set(names), self.err
        return "\n".join([what, *rest])


def fedquilt(*words: str | Path) -> Said:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Said(code, out.getvalue(), err.getvalue())


def start(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    process: subprocess.Popen[str] = subprocess.Popen([*COMMAND, *map(str, words)], **pipes)
    return process


def finish(process: subprocess.Popen[str]) -> Said:
    """Wait for a started command."""
    out, err = process.communicate(timeout=PATIENCE)
    return Said(process.returncode, out, err)


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Until ``ready()``; fails when the process ends before, or nothing happens."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def write_config(folder: Path, method: str = "fedit", /, **overrides: Any) -> Path:
    """A configuration of the tiny federation as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config-of-test.toml"
    path.write_text(tiny_config(folder, method, **overrides).to_toml(), encoding="utf-8")
    return path


def committed(run: Path) -> int:
    """The last committed round; -1 before the first commit."""
    manifest = read_manifest(run)
    return manifest["generations"][0]["round"] if manifest else -1


def journal(run: Path, name: str = "rounds.jsonl") -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


def result(run: Path) -> dict[str, bytes]:
    """Every byte that a run determines: adapters, journals, state, manifest, and the summary without its seconds."""
    manifest = read_manifest(run)
    assert manifest is not None
    names = [*JOURNALS, "hub.json", "config.toml", "partition.json"]
    names += [name for generation in manifest["generations"] for name in generation["files"]]
    adapters = [path for path in (run / "adapters").rglob("*") if path.is_file() and path.suffix != ".tmp"]
    names += [str(path.relative_to(run)) for path in adapters]
    content = {name: (run / name).read_bytes() for name in sorted(names)}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    del summary["seconds"]
    return {**content, "summary": json.dumps(summary, sort_keys=True).encode()}


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of what differs (short, unlike a diff of bytes)."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
