"""A real Flower network on this machine, over TLS with node keys: the bits of the same run in one process."""

from __future__ import annotations

from pathlib import Path

from door import differences, journal, result
from tiny import tiny_config

from fedquilt.deploy.flower.rehearsal import Rehearsal
from fedquilt.runs.launch import run

SERVER = 300.0  # seconds for the whole run


def test_a_run_over_flower_has_the_bits_of_one_process(tmp_path: Path) -> None:
    """FL-TAC with two clients; nobody is left behind when the network ends."""
    chosen = tiny_config(tmp_path, "fltac", engine="sequential", partition={"how": "iid", "clients": 2, "column": None})
    config = tmp_path / "config.toml"
    config.write_text(chosen.to_toml(), encoding="utf-8")
    nodes = [{"client": n, "config": str(config), "state": str(tmp_path / f"c{n}")} for n in range(2)]
    with Rehearsal(tmp_path, nodes) as network:
        submitted = network.run(config=str(config), directory=str(tmp_path / "run"), clients=2, deadline=SERVER)
        assert submitted.wait(SERVER) == 0, network.said("run")
        assert (tmp_path / "run" / "summary.json").exists(), network.said("link")
        assert len(network.processes()) > 4
    assert not network.processes(), "a process of the network is still there"
    here = run(chosen, directory=tmp_path / "here")
    assert [entry["accepted"] for entry in journal(tmp_path / "run")] == [entry["accepted"] for entry in journal(here)]
    assert differences(result(tmp_path / "run"), result(here)) == []
