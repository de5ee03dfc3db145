"""A client as a process that stays: its worker, whatever Flower's programs do."""

from __future__ import annotations

import os
import sys
import time

import pytest
from tiny import tiny_config

from fedquilt.deploy.flower import parties
from fedquilt.deploy.settings import ClientSettings


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_stays_while_the_server_is_away_and_ends_with_its_client(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SuperNodes that end at once: the model is loaded once, not with each of them."""
    folder = tmp_path_factory.mktemp("c")
    config = folder / "config.toml"
    config.write_text(tiny_config(folder, "fedit", rounds=1, engine="sequential").to_toml(), encoding="utf-8")
    monkeypatch.setattr(parties, "node", lambda *_: [sys.executable, "-c", ""])
    monkeypatch.setattr(parties, "PAUSE", 0.2)
    lines: list[str] = []
    pids: list[int] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("not connected") and "the base model is loaded" in lines:
            pids.append(int(next((folder / "state" / "worker").glob("*.pid")).read_text(encoding="ascii")))
            assert alive(pids[-1])
            if len(pids) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parties.join(folder, ClientSettings(server="localhost:1", client=0), config, say)
    assert len(set(pids)) == 1
    assert lines.count("the base model is loaded") == 1
    end = time.monotonic() + 10
    while alive(pids[0]):
        assert time.monotonic() < end, "the worker outlives its client"
        time.sleep(0.05)
