"""Over a real Flower network: who must not take part does not, and a server that is killed goes on where it was."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from door import committed, differences, result
from tiny import tiny_config

from fedquilt.deploy.flower.rehearsal import Rehearsal
from fedquilt.deploy.keys import write_node, write_server
from fedquilt.runs.config import RunConfig
from fedquilt.runs.launch import run

pytestmark = pytest.mark.slow
PATIENCE = 300.0


def written(config: RunConfig, path: Path) -> str:
    path.write_text(config.to_toml(), encoding="utf-8")
    return str(path)


def node(client: int, config: str, folder: Path) -> Mapping[str, Any]:
    return {"client": client, "config": config, "state": str(folder / f"state-{client}")}


def until(what: str, network: Rehearsal, log: str) -> None:
    """Wait for a word in a log."""
    end = time.monotonic() + PATIENCE
    while what not in network.said(log):
        assert time.monotonic() < end, network.said(log)
        time.sleep(0.1)


def test_who_must_not_take_part_does_not(tmp_path: Path) -> None:
    """A key that nobody registered, a server that another authority speaks for, another base model; each with its reason."""
    two = {"how": "iid", "clients": 2, "column": None}
    chosen = tiny_config(tmp_path, "fedit", engine="sequential", partition=two)
    config = written(chosen, tmp_path / "config.toml")
    other = tiny_config(tmp_path, "fedit", engine="sequential", partition=two, seed=1)  # random weights from another seed
    nodes = [node(0, config, tmp_path), node(1, config, tmp_path), node(1, written(other, tmp_path / "other.toml"), tmp_path / "o")]
    with Rehearsal(tmp_path, nodes) as network:
        write_node(tmp_path / "stranger", "node")
        write_server(tmp_path / "elsewhere", ["127.0.0.1"])
        network.settings = [*nodes, nodes[0], nodes[0]]
        network.start_node(3, **{"node": str(tmp_path / "stranger" / "node"), "ca.crt": str(network.project / "server" / "ca.crt")})
        network.start_node(
            4, **{"node": str(network.project / "client-0" / "node"), "ca.crt": str(tmp_path / "elsewhere" / "ca.crt")}
        )
        until("[code: 2004]", network, "node3")
        until("CERTIFICATE_VERIFY_FAILED", network, "node4")
        submitted = network.run(config=config, directory=str(tmp_path / "run"), clients=3, deadline=PATIENCE)
        assert submitted.wait(PATIENCE) == 0, network.said("run")
        assert "takes no part: it has another configuration" in network.said("run")
        assert "2 of 3 clients take part" in network.said("run")
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(tmp_path / "run"), result(here)) == []


def test_a_server_that_is_killed_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Its process gets SIGKILL at some instant of the first, second and third round; the same command continues."""
    chosen = tiny_config(tmp_path, "fltac", rounds=4, engine="sequential", partition={"how": "iid", "clients": 2, "column": None})
    config = written(chosen, tmp_path / "config.toml")
    directory, draw = tmp_path / "run", random.Random(6)
    with Rehearsal(tmp_path, [node(n, config, tmp_path) for n in range(2)]) as network:
        for number in range(3):
            network.run(config=config, directory=str(directory), clients=2, deadline=PATIENCE)
            end = time.monotonic() + PATIENCE
            while not directory.exists() or committed(directory) < number:
                assert time.monotonic() < end, network.said("run")
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 3))
            mine = [pid for pid, line in network.processes().items() if "flwr-serverapp" in line]
            for pid in mine:
                os.kill(pid, signal.SIGKILL)
            assert mine, "it had ended already"
            assert network.submitted is not None
            network.submitted.wait(PATIENCE)
        submitted = network.run(config=config, directory=str(directory), clients=2, deadline=PATIENCE)
        assert submitted.wait(PATIENCE) == 0, network.said("run")
        assert (directory / "summary.json").exists(), network.said("link")[-3000:]
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(directory), result(here)) == []
