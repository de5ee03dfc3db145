"""A federation as its people make it: a server and clients with their own data, by commands alone, on a real Flower network."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path

import httpx
import tomli_w
from door import differences, journal, start
from own import adapters, own_rows, shared, simulated, slots
from tiny import write_tasks

from fedquilt.deploy.flower.rehearsal import MARK, Rehearsal
from fedquilt.runs.config import parse

PATIENCE = 300.0  # seconds for the whole run
CLIENTS = (0, 1)


def test_from_three_folders_to_adapters(tmp_path: Path) -> None:
    """server, client, submit, status: the bits of a simulation with the same rows; nobody is left behind when all have ended."""
    write_tasks(tmp_path)
    tables = shared("fltac", rounds=2, method={"tasks": 3})
    for client in CLIENTS:
        own = parse({**tables, "tasks": own_rows(tmp_path, client)}, tmp_path)
        (tmp_path / f"{client}.toml").write_text(own.to_toml(), encoding="utf-8")
    nodes = [{"client": n, "config": str(tmp_path / f"{n}.toml"), "state": str(tmp_path / f"c{n}")} for n in CLIENTS]
    config, run = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(tomli_w.dumps(tables), encoding="utf-8")
    with Rehearsal(tmp_path, nodes) as network:
        place, env = ("--server", network.project / "server"), {**os.environ, MARK: str(tmp_path)}
        submitted = start("submit", config, *place, "--dir", run, "--json", env=env)
        out, err = submitted.communicate(timeout=PATIENCE)
        assert submitted.returncode == 0, err + network.said("server")
        assert "2 of 2 clients take part" in err
        assert "warning: 3 clusters for" not in err
        assert "round 2/2" in err
        assert json.loads(out)["summary"]["mean"] is not None
        found, err = start("status", *place, "--json", env=env).communicate(timeout=PATIENCE)
        assert [client["name"] for client in json.loads(found)["clients"]] == ["client-0", "client-1"], err
        assert len(json.loads(found)["runs"]) == 1
        assert len(network.processes()) > 4
        trust = ssl.create_default_context(cafile=str(network.project / "server" / "ca.crt"))
        with httpx.Client(base_url=f"https://127.0.0.1:{network.port}", verify=trust) as anybody:
            assert anybody.post("/v1/control/list-runs").status_code == 404, "the door lets strangers control the network"
            unsigned = anybody.post("/v1/fleet/pull-messages", headers={"content-type": "application/protobuf"})
            assert unsigned.status_code in (401, 403), unsigned
    assert not network.processes(), "a process of the network is still there"
    here = simulated(tmp_path, {**tables, "tasks": own_rows(tmp_path, *CLIENTS)})
    assert adapters(here)
    assert differences(adapters(run), adapters(here)) == []
    assert journal(run) == journal(here)
    assert slots(run) == slots(here)
