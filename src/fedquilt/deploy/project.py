"""A federation as a folder: what every machine needs, ready to be copied there."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from pathlib import Path

from fedquilt.deploy.keys import write_node, write_server
from fedquilt.deploy.settings import ServerSettings, read
from fedquilt.errors import StateError

CLIENT = re.compile(r"client-(\d+)")
REGISTERED = "registered.json"  # in the server's home: Flower does not tell the names of its nodes
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedquilt-app"
version = "1.0.0"
description = "fedquilt's server and client for Flower"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedquilt"

[tool.flwr.app.components]
serverapp = "fedquilt_app.server:app"
clientapp = "fedquilt_app.client:app"

[tool.flwr.app.config]
config = ""
directory = ""
state = ""
registered = ""
clients = 1
deadline = 3600.0
"""

SERVER = """\
# Of fedquilt server, submit and status, in this folder.
listen = "0.0.0.0"
port = 8000          # clients come in here, and nothing but their requests is let through
control = 8001       # of this machine alone; a firewall need not know it
deadline = 3600.0    # seconds that clients have for a round
"""

CLIENT_SETTINGS = """\
# Of fedquilt client, in this folder.
server = "{server}"
client = {number}
config = "data.toml"   # the run, and the data of this machine
state = "state"        # what this client keeps of runs: nobody else may read it
"""

RUN = """\
# What all machines have the same of. Every machine has this file, and refuses a run that says something else.
name = "federation"
rounds = 3
# secure_aggregation = true    # the server is told sums alone; fltac then needs choice = "clients" below

[model]
name = "asset:minilm"
classes = 3            # the most labels that a task has

[adapter]
rank = 1

[method]
name = "fltac"
tasks = 1              # how many different tasks there are in all
# choice = "clients"   # each client finds the clusters of its own tasks
lr = 2e-3
epochs = 1
batch = 16

[partition]
how = "own"            # every client has data of its own, and the server none
"""

DATA = """\
# The data of this machine. Nothing of this file leaves it; names of tasks are for you alone.
extends = "run.toml"

# [[tasks]]
# name = "reviews"
# source = "file:reviews.csv"    # columns text and label; a tenth of the rows is kept for evaluation
# labels = ["bad", "good"]
"""

UNIT = """\
[Unit]
Description=fedquilt {what}
After=network-online.target
Wants=network-online.target

[Service]
User=fedquilt
WorkingDirectory=/srv/fedquilt/{folder}
Environment=XDG_CACHE_HOME=/srv/fedquilt/{folder}/cache
SuccessExitStatus=143
ExecStart=/srv/fedquilt/venv/bin/fedquilt {what} .
Restart=on-failure
RestartSec=10
KillMode=control-group
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ReadWritePaths=/srv/fedquilt/{folder}

[Install]
WantedBy=multi-user.target
"""

DOCKERFILE = """\
# The package as a wheel, and the versions it was tested with, beside this file:
#     pip wheel --no-deps -w . CHECKOUT && cp CHECKOUT/constraints.txt .
FROM python:3.11-slim
COPY fedquilt-*.whl constraints.txt /wheels/
RUN for wheel in /wheels/*.whl; do pip install --no-cache-dir -c /wheels/constraints.txt "$wheel[flower]"; done
WORKDIR /federation
"""

SERVICE = """\
  {name}:
    build: .
    command: fedquilt {what} .
    user: "{user}"  # whose the folders are: nobody else can read the keys
    environment: {{USER: fedquilt, HOME: /federation, XDG_CACHE_HOME: /federation/cache}}
    volumes: ["./{folder}:/federation"]
    restart: unless-stopped
"""


def write(folder: Path, hosts: list[str], clients: int) -> None:
    """``server/`` with certificates, the clients' public keys and the app for Flower; ``client-<n>/`` with each one's key.

    Each has its settings and a unit for systemd; ``compose.yaml`` has all of them on one machine.

    Raises:
        StateError: something is there already: keys are never replaced.
    """
    _new(folder)
    server = folder / "server"
    write_server(server, list(dict.fromkeys([*hosts, "server", "localhost", "127.0.0.1"])))  # first, for it may refuse a name
    package = server / "app" / "fedquilt_app"
    package.mkdir(parents=True)
    (server / "clients").mkdir()
    texts = {
        server / "server.toml": SERVER,
        server / "run.toml": RUN,
        server / "fedquilt-server.service": UNIT.format(what="server", folder="server"),
        server / "app" / "pyproject.toml": PYPROJECT,
        package / "__init__.py": "",
        folder / "Dockerfile": DOCKERFILE,
    }
    for side in ("server", "client"):
        texts[package / f"{side}.py"] = f"from fedquilt.deploy.flower import {side}\n\napp = {side}.app\n"
    texts[folder / "compose.yaml"] = _services(hosts[0], clients)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    for number in range(clients):
        add(folder / f"client-{number}", server, hosts[0])


def add(folder: Path, server: Path, host: str) -> int:
    """A client's folder, and its public key in that of the server; its number.

    Raises:
        StateError: the folder is not empty, or the other one is not a server's.
    """
    _new(folder)
    if not (server / "ca.crt").exists():
        raise StateError("this is no server's folder", where=str(server), why="there is no ca.crt", fix="fedquilt deploy init")
    names = [path.stem for path in (server / "clients").iterdir()] + [*registered(server / "home" / REGISTERED)]  # left ones, too
    number = max((int(found[1]) for name in names if (found := CLIENT.fullmatch(name))), default=-1) + 1
    port = read(server / "server.toml", ServerSettings).port
    address = f"[{host.strip('[]')}]:{port}" if host.count(":") > 1 else f"{host}:{port}"
    write_node(folder, "node")
    (folder / "ca.crt").write_bytes((server / "ca.crt").read_bytes())
    (folder / "run.toml").write_bytes((server / "run.toml").read_bytes())
    (folder / "client.toml").write_text(CLIENT_SETTINGS.format(server=address, number=number), encoding="utf-8")
    (folder / "data.toml").write_text(DATA, encoding="utf-8")
    (folder / "fedquilt-client.service").write_text(UNIT.format(what="client", folder=folder.name), encoding="utf-8")
    (server / "clients" / f"client-{number}.pub").write_bytes((folder / "node.pub").read_bytes())
    return number


def registered(path: Path) -> dict[str, dict[str, str]]:
    """A server's :data:`REGISTERED`: name of a key -> its digest (``key``) and the number of its node (``node``)."""
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _services(host: str, clients: int) -> str:
    """All of it on one machine; clients find the server under the name that their settings have."""
    user = f"{os.getuid()}:{os.getgid()}" if hasattr(os, "getuid") else "1000:1000"
    text = "# All of it on one machine.\nservices:\n" + SERVICE.format(name="server", what="server", folder="server", user=user)
    text += '    ports: ["8000:8000"]\n'
    if _is_name(host):
        text += f"    networks: {{default: {{aliases: [{json.dumps(host)}]}}}}\n"
    else:
        text += f'    # {host} is something else in a container: server = "server:8000" in every client.toml.\n'
    names = [f"client-{number}" for number in range(clients)]
    return text + "".join(SERVICE.format(name=name, what="client", folder=name, user=user) for name in names)


def _is_name(host: str) -> bool:
    """Whether a container can be called so: it is no address, and not what every container is to itself."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.rpartition(".")[2] != "localhost"
    return False


def _new(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise StateError("the folder is not empty", where=str(folder), why="keys are never replaced", fix="choose a new folder")
