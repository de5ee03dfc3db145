"""A server, and clients, that are killed at any instant of a run: the bits of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from door import committed, differences, result
from tiny import tiny_config

from fedquilt.runs.launch import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KILLS = 20
ROUNDS = 12
PROGRAM = """
import sys
from pathlib import Path

from fedquilt.deploy.build import host, remote, run_id
from fedquilt.deploy.loopback import Loopback
from fedquilt.runs.build import build
from fedquilt.runs.launch import resume, run
from fedquilt.runs.config import load_config
from fedquilt.runs.store import MANIFEST

config, folder = load_config(sys.argv[1]), Path(sys.argv[2])
hosts = {n: host(build(config), n, folder.parent / f"client-{n}").answer for n in range(4)}
print("ready", flush=True)


def engine(built):
    made = remote(built, Loopback(hosts), run_id(folder))
    made.meet()
    return made


if (folder / MANIFEST).exists():
    resume(folder, engine=engine)
else:
    run(config, directory=folder, engine=engine)
"""


@pytest.mark.parametrize("hidden", [False, True], ids=["replies", "sums"])
@pytest.mark.parametrize(("method", "every"), [("fltac", 1), ("fedtt_plus", 2)])
def test_killed_at_random_instants(method: str, every: int, hidden: bool, tmp_path: Path) -> None:
    """Server and clients are one process here, so all of them die at once, in whatever they are: training, writing what a client
    keeps, the gate, a checkpoint, a phase of a sum. The instants are spread over a whole run's time."""
    choosing = {"choice": "clients"} if hidden and method == "fltac" else {}
    overrides = {"rounds": ROUNDS, "engine": "sequential", "checkpoint_every": every, "method": {"steps": 1, **choosing}}
    chosen = tiny_config(tmp_path, method, secure_aggregation=hidden, **overrides)
    path, folder, draw = tmp_path / "config.toml", tmp_path / "run", random.Random(7)
    path.write_text(chosen.to_toml(), encoding="utf-8")

    def started() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, path, folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # its model is loaded
        return process

    begin = time.monotonic()
    with started() as whole:
        assert whole.wait() == 0
    length = time.monotonic() - begin
    undisturbed = folder.rename(tmp_path / "undisturbed")
    for number in range(4):
        (tmp_path / f"client-{number}").rename(tmp_path / f"undisturbed-client-{number}")
    here = result(run(chosen, directory=tmp_path / "here"))
    assert differences(result(undisturbed), here) == []
    kills, where = 0, set()
    while kills < KILLS:
        with started() as process:
            try:
                process.wait(draw.uniform(0, length / 3))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        where.add(committed(folder) if folder.exists() else -1)
        if kills == KILLS and process.returncode:
            with started() as process:
                process.wait()
        if not process.returncode:  # it has ended, in spite of everything; and from the beginning again
            assert differences(result(folder), here) == []
            shutil.rmtree(folder)
            for number in range(4):
                shutil.rmtree(tmp_path / f"client-{number}")
    assert not folder.exists(), "the last run did not end"
    assert len(where) > 3, where
