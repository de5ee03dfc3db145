"""A federation as a folder: what every machine needs, ready to be copied there."""

from __future__ import annotations

from pathlib import Path

from fedquilt.deploy.keys import write_node, write_server
from fedquilt.errors import StateError

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
clients = 1
deadline = 3600.0
"""


def write(folder: Path, hosts: list[str], clients: int) -> None:
    """``app/`` for Flower, ``server/`` with certificates, ``client-<n>/`` with each one's key.

    Raises:
        StateError: something is there already: keys are never replaced.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StateError("the folder is not empty", where=str(folder), why="keys are never replaced", fix="choose a new folder")
    write_server(folder / "server", hosts)  # first, for it may refuse a name
    package = folder / "app" / "fedquilt_app"
    package.mkdir(parents=True)
    (folder / "app" / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")
    for side in ("server", "client"):
        (package / f"{side}.py").write_text(f"from fedquilt.deploy.flower import {side}\n\napp = {side}.app\n", encoding="utf-8")
    for number in range(clients):
        own = folder / f"client-{number}"
        write_node(own, "node")
        (own / "ca.crt").write_bytes((folder / "server" / "ca.crt").read_bytes())
