"""A client as a process that stays: its worker, whatever Flower's programs do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_config

from fedquilt.deploy.flower import parties
from fedquilt.deploy.settings import ClientSettings
from fedquilt.deploy.worker import MARK
from fedquilt.errors import StateError


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_stays_while_the_server_is_away_and_ends_with_its_client(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SuperNodes that end at once: the model is loaded once, not with each of them."""
    config = short / "config.toml"
    config.write_text(tiny_config(short, "fedit", rounds=1, engine="sequential").to_toml(), encoding="utf-8")
    monkeypatch.setattr(parties, "node", lambda *_: [sys.executable, "-c", ""])
    monkeypatch.setattr(parties, "PAUSE", 0.2)
    lines: list[str] = []
    pids: list[int] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("not connected") and "the base model is loaded" in lines:
            pids.append(int(next((short / "state" / "worker").glob("*.pid")).read_text(encoding="ascii")))
            assert alive(pids[-1])
            if len(pids) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parties.join(short, ClientSettings(server="localhost:1", client=0), config, say)
    assert len(set(pids)) == 1
    assert lines.count("the base model is loaded") == 1
    end = time.monotonic() + 10
    while alive(pids[0]):
        assert time.monotonic() < end, "the worker outlives its client"
        time.sleep(0.05)


def test_a_worker_that_a_killed_client_has_left_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else's."""
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    state = tmp_path / "state"
    left, other = (subprocess.Popen(sleeping, env={**os.environ, MARK: str(place)}) for place in (state, tmp_path / "other"))
    try:
        with pytest.raises(
            StateError, match="cannot be started"
        ):  # there is no configuration: what was left is ended before it is read
            parties.join(tmp_path, ClientSettings(server="localhost:1", client=0), tmp_path / "none.toml", print)
        assert left.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for one in (left, other):
            one.kill()
            one.wait()
