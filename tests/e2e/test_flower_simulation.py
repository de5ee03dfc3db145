"""Flower's own simulation (``flwr run``, on Ray) runs the same apps: the bits of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from door import differences, result
from tiny import tiny_config

from fedquilt.deploy.flower.network import Home, with_environment
from fedquilt.deploy.project import write
from fedquilt.runs.launch import run

PATIENCE = 250.0


@pytest.mark.slow
def test_flowers_own_simulation(tmp_path: Path) -> None:
    """Two clients; the local SuperLink and Ray's processes end with the test."""
    chosen = tiny_config(tmp_path, "fltac", engine="sequential", partition={"how": "iid", "clients": 2, "column": None})
    config = tmp_path / "config.toml"
    config.write_text(chosen.to_toml(), encoding="utf-8")
    write(tmp_path / "federation", ["127.0.0.1"], 1)
    home = Home(tmp_path / "home")
    said = {"config": str(config), "directory": str(tmp_path / "run"), "state": str(tmp_path / "state"), "clients": 2}
    done = home.simulate(tmp_path / "federation" / "server" / "app", said, 2, PATIENCE)
    assert not with_environment("FLWR_HOME", home.env["FLWR_HOME"]), "a process of the simulation is still there"
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "summary.json").exists(), done.stdout[-5000:]
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(tmp_path / "run"), result(here)) == []
