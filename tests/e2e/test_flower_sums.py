"""Secure aggregation over a real Flower network: the bits of a simulation, and a client that loses its secrets in mid-round."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from door import committed, differences, journal, result
from tiny import tiny_config

from fedquilt.deploy.flower.rehearsal import Rehearsal
from fedquilt.runs.launch import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE = 800.0
CLIENTS = 4


def federation(folder: Path, **more: Any) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """The configuration, the nodes, and the settings of the run."""
    four = {"how": "iid", "clients": CLIENTS, "column": None}
    secure: dict[str, Any] = {"engine": "sequential", "secure_aggregation": True, "partition": four, **more}
    chosen = tiny_config(folder, "fltac", **secure)
    path = folder / "config.toml"
    path.write_text(chosen.to_toml(), encoding="utf-8")
    nodes = [{"client": n, "config": str(path), "state": str(folder / f"state-{n}")} for n in range(CLIENTS)]
    settings = {"config": str(path), "directory": str(folder / "run"), "clients": CLIENTS, "deadline": PATIENCE}
    return chosen, nodes, settings


def test_clusters_from_sums_over_a_network(tmp_path: Path) -> None:
    """FL-TAC whose server sees no adapter: every byte of the run directory."""
    chosen, nodes, settings = federation(tmp_path, rounds=2, method={"choice": "clients"})
    with Rehearsal(tmp_path, nodes) as network:
        submitted = network.run(**settings)
        assert submitted.wait(PATIENCE) == 0, network.said("run") + network.said("server")[-3000:]
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(tmp_path / "run"), result(here)) == []


def test_a_client_that_loses_its_secrets_is_left_out_of_that_round(tmp_path: Path) -> None:
    """Its worker gets SIGKILL; what it had for the round is gone with it, and the others' masks are taken out."""
    _, nodes, settings = federation(tmp_path, rounds=4, method={"choice": "clients", "steps": 20})
    directory = tmp_path / "run"
    with Rehearsal(tmp_path, nodes) as network:
        submitted = network.run(**settings)
        end = time.monotonic() + PATIENCE
        while not directory.exists() or committed(directory) < 1:
            assert time.monotonic() < end, network.said("run")
            time.sleep(0.05)
        workers = {pid: line for pid, line in network.processes().items() if "fedquilt.deploy.worker" in line}
        (pid,) = [pid for pid, line in workers.items() if "config.toml 3 " in line]
        os.kill(pid, signal.SIGKILL)
        assert submitted.wait(PATIENCE) == 0, network.said("run") + network.said("server")[-3000:]
    rounds = journal(directory)
    assert [entry["round"] for entry in rounds] == list(range(1, 5))
    assert all(entry["accepted"] >= entry["jobs"] * 0.6 for entry in rounds)
    assert {r["slot"][0] for entry in rounds for r in entry["rejected"]} <= {3}
    assert rounds[-1]["rejected"] == [], "it came back"
