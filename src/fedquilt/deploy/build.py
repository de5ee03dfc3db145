"""Both ends of a deployment from the objects of a run."""

from __future__ import annotations

import hashlib
import json
from copy import copy
from dataclasses import replace
from pathlib import Path

from fedquilt.deploy.host import Generations, Host
from fedquilt.deploy.parcel import Pins
from fedquilt.deploy.remote import Remote, Transport
from fedquilt.errors import CompositionError
from fedquilt.runs.build import Built
from fedquilt.runs.config import RunConfig
from fedquilt.wire import message


def pins(built: Built) -> Pins:
    """What both ends must have the same of."""
    return Pins(config=shared(built.config), base=built.base.fingerprint, layout=message.layout(built.adapter.spec.leaves))


def shared(config: RunConfig) -> str:
    """Digest of what decides a run on every machine alike: not where data is, who holds it, or what computes it."""
    said = config.model_dump(mode="json", include={"seed", "rounds", "adapter", "method", "model"}, exclude_defaults=True)
    said.get("model", {}).pop("device", None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def host(built: Built, client: int, folder: Path) -> Host:
    """A client's side, over its part of the data; ``folder``: for its own state."""
    engine = copy(built.engine)  # of many clients in one process each has its own view and memory
    engine.view = replace(built.view, slots={slot: data for slot, data in built.view.slots.items() if slot.client == client})
    generations = Generations(folder, built.config.checkpoint_every + 1)
    return Host(client, engine, built.adapter.init, pins(built), built.config.seed, built.config.rounds, generations)


def remote(built: Built, transport: Transport, deadline: float = 3600.0) -> Remote:
    """The server's side.

    Raises:
        CompositionError: trained leaves stay with the clients, which this server could not evaluate.
    """
    if not built.bank_is_complete:
        raise CompositionError(
            "trained leaves stay on the clients, and the server cannot evaluate what it does not have",
            where="method",
            fix="train it by one process, or let all leaves travel",
        )
    client = built.program.client
    return Remote(transport, built.adapter.spec, client, built.config.seed, pins(built), built.fingerprint, deadline)
