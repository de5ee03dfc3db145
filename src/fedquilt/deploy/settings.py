"""What the folders of a federation say: ``server.toml`` and ``client.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fedquilt.deploy.worker import IDLE
from fedquilt.errors import ConfigError
from fedquilt.runs import registry
from fedquilt.runs.toml import tables


class ServerSettings(BaseModel):
    """``server.toml``.

    Attributes:
        listen: address on which clients are let in.
        port: for clients.
        control: another port, of this machine alone, for submit and status.
        deadline: seconds that clients have for a round.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = "0.0.0.0"
    port: int = Field(8000, ge=1, le=65535)
    control: int = Field(8001, ge=1, le=65535)
    deadline: float = Field(3600.0, gt=0)


class ClientSettings(BaseModel):
    """``client.toml``; paths are seen from its folder.

    Attributes:
        server: host:port.
        client: number, one per client.
        config: the run's configuration with this machine's own tasks.
        state: what this client keeps of runs.
        sockets: of the worker, where the path of ``state`` is too long for one; None: in it.
        idle: seconds without a message after which the worker ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: str = Field(pattern=r"^\S+:\d{1,5}$")
    client: int = Field(ge=0)
    config: str = "run.toml"
    state: str = "state"
    sockets: str | None = None
    idle: float = Field(IDLE, gt=0)


Settings = TypeVar("Settings", ServerSettings, ClientSettings)


def read(path: Path, kind: type[Settings]) -> Settings:
    """The settings in a file.

    Raises:
        ConfigError: no such file, or not these settings.
    """
    try:
        given = tables(path.read_bytes(), path, path.name)
    except OSError as error:
        fix = "go to a folder that fedquilt deploy init wrote, or name it"
        raise ConfigError(f"there is no {path.name}", where=str(path), why=error.strerror or str(error), fix=fix) from error
    found: Settings = registry.validate(kind, given, "")
    return found
