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
from door import committed, differences, journal, result
from tiny import tiny_config

from fedquilt.deploy.build import host, remote
from fedquilt.deploy.flower.network import with_environment
from fedquilt.deploy.flower.rehearsal import Rehearsal
from fedquilt.deploy.keys import write_node, write_server
from fedquilt.deploy.loopback import Loopback
from fedquilt.deploy.parcel import unpack
from fedquilt.deploy.remote import Remote
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import RunConfig
from fedquilt.runs.launch import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
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
        ours, theirs = network.project / "server" / "ca.crt", tmp_path / "elsewhere" / "ca.crt"
        network.start_node(3, {"node": tmp_path / "stranger" / "node", "ca.crt": ours})
        network.start_node(4, {"node": network.project / "client-0" / "node", "ca.crt": theirs})
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
            until_committed(directory, number, network)
            time.sleep(draw.uniform(0, 3))
            mine = [pid for pid, line in network.processes().items() if "flwr-serverapp" in line]
            for pid in mine:
                os.kill(pid, signal.SIGKILL)
            assert mine, "it had ended already"
            assert network.submitted is not None
            network.submitted.wait(PATIENCE)
        submitted = network.run(config=config, directory=str(directory), clients=2, deadline=PATIENCE)
        assert submitted.wait(PATIENCE) == 0, network.said("run")
        assert (directory / "summary.json").exists(), network.said("server")[-3000:]
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(directory), result(here)) == []


def kill(network: Rehearsal, *, place: Path | None = None, word: str = "") -> int:
    """SIGKILL for all processes of one machine, or with a word in their command; how many there were."""
    found = network.processes()
    if place is not None:
        found = {pid: found[pid] for pid in found.keys() & with_environment("FLWR_HOME", str(place / "home")).keys()}
    chosen = [pid for pid, line in found.items() if word in line]
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + PATIENCE
    while any(pid in network.processes() for pid in chosen):
        assert time.monotonic() < end
        time.sleep(0.05)
    return len(chosen)


def until_committed(directory: Path, number: int, network: Rehearsal) -> None:
    end = time.monotonic() + PATIENCE
    while not directory.exists() or committed(directory) < number:
        assert time.monotonic() < end, network.said("run") + network.said("server")[-3000:]
        time.sleep(0.05)


def test_a_worker_and_the_whole_server_are_killed(tmp_path: Path) -> None:
    """A worker in mid-round: it is started anew and asked again. Then the SuperLink, its door and the run at once: they are started
    again on the same folder, clients come back by themselves, and the run continues; all with the bits of an undisturbed run."""
    chosen = tiny_config(tmp_path, "fltac", rounds=5, engine="sequential", partition={"how": "iid", "clients": 2, "column": None})
    config, directory = written(chosen, tmp_path / "config.toml"), tmp_path / "run"
    settings: dict[str, Any] = {"config": config, "directory": str(directory), "clients": 2, "deadline": PATIENCE}
    with Rehearsal(tmp_path, [node(n, config, tmp_path) for n in range(2)]) as network:
        network.run(**settings)
        until_committed(directory, 1, network)
        assert kill(network, word="fedquilt.deploy.worker") == 2
        until_committed(directory, 2, network)
        server = network.project / "server"
        assert kill(network, place=server) + kill(network, word=f"server {server}") > 3
        network.start_server()
        submitted = network.run(**settings)
        assert submitted.wait(PATIENCE) == 0, network.said("run")
        assert (directory / "summary.json").exists(), network.said("server")[-3000:]
    here = run(chosen, directory=tmp_path / "here")
    assert differences(result(directory), result(here)) == []


def test_a_client_that_is_killed_misses_its_round_and_comes_back(tmp_path: Path) -> None:
    """Everything of one client gets SIGKILL while it trains. The round ends at its deadline without it; started again, it takes
    part in the rest: the bits are those of a run in which it does not answer in that round."""
    two = {"how": "iid", "clients": 2, "column": None}
    long = {"steps": 200}  # for half a minute the server takes the node that was killed for connected
    chosen = tiny_config(tmp_path, "fedit", rounds=14, engine="sequential", partition=two, method=long)
    config, directory = written(chosen, tmp_path / "config.toml"), tmp_path / "run"
    with Rehearsal(tmp_path, [node(n, config, tmp_path) for n in range(2)]) as network:
        network.run(config=config, directory=str(directory), clients=2, deadline=45.0)
        until_committed(directory, 1, network)
        place = network.project / "client-1"
        assert kill(network, place=place) + kill(network, word=f"client {place}") > 2
        network.start_node(1)
        assert network.submitted is not None
        assert network.submitted.wait(2 * PATIENCE) == 0, network.said("run")
    missed = [entry["round"] for entry in journal(directory) if entry["rejected"]]
    assert [entry["rejected"][0]["code"] for entry in journal(directory) if entry["rejected"]] == ["lost"] * len(missed)
    assert missed == list(range(missed[0], missed[0] + len(missed)))
    assert missed[-1] < 14, "it did not come back: " + network.said("node1")[-2000:]
    built = build(chosen)
    hosts = {n: host(built, n, tmp_path / f"other-{n}") for n in range(2)}

    def answer(data: bytes) -> bytes | None:
        return None if unpack(data, 1 << 30).said.get("round") in missed else hosts[1].answer(data)

    def engine(built: Built) -> Remote:
        made = remote(built, Loopback({0: hosts[0].answer, 1: answer}), "0" * 32)
        made.meet()
        return made

    here = run(chosen, directory=tmp_path / "here", engine=engine)
    there = {name: data for name, data in result(directory).items() if name.startswith("adapters/")}
    assert there == {name: data for name, data in result(here).items() if name.startswith("adapters/")}
