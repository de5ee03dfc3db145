"""Flower's own simulation (``flwr run``, on Ray) runs the same apps: the bits of one process."""

from __future__ import annotations

import subprocess
from pathlib import Path

from door import differences, result
from tiny import tiny_config

from fedquilt.deploy.flower.network import Home, free_port, submission, with_environment
from fedquilt.deploy.project import write
from fedquilt.runs.launch import run

PATIENCE = 250.0


def test_flowers_own_simulation(tmp_path: Path) -> None:
    """Two clients; the local SuperLink and Ray's processes end with the test."""
    chosen = tiny_config(tmp_path, "fltac", engine="sequential", partition={"how": "iid", "clients": 2, "column": None})
    config = tmp_path / "config.toml"
    config.write_text(chosen.to_toml(), encoding="utf-8")
    write(tmp_path / "federation", ["127.0.0.1"], 1)
    home = Home(tmp_path / "home")
    (home.folder / "config.toml").write_text('[superlink.fedquilt]\naddress = ":local:"\n', encoding="utf-8")
    said = {"config": str(config), "directory": str(tmp_path / "run"), "state": str(tmp_path / "state"), "clients": 2}
    command = submission(tmp_path / "federation" / "server" / "app", said)
    size = ["--federation-config", "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"]
    # Ports of its own: else it would run on the local SuperLink of whoever has one, and end that.
    ports = {f"FLWR_LOCAL_{name}_PORT": str(free_port()) for name in ("SUPERLINK_HTTP_API", "CONTROL_API")}
    env = {**home.env, **ports, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run([*command, *size], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    finally:
        home.end()
    assert not with_environment("FLWR_HOME", env["FLWR_HOME"]), "a process of the simulation is still there"
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "summary.json").exists(), done.stdout[-5000:]
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(tmp_path / "run"), result(here)) == []
