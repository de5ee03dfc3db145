"""Both ends of a deployment from the objects of a run."""

from __future__ import annotations

import hashlib
import json
import secrets
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedquilt.deploy.elsewhere import Elsewhere, evaluation
from fedquilt.deploy.host import Host
from fedquilt.deploy.messages import SLOTS, Pins
from fedquilt.deploy.remote import Remote
from fedquilt.deploy.transport import Transport
from fedquilt.errors import CompositionError
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.build import Built
from fedquilt.runs.config import RunConfig
from fedquilt.wire import message


def pins(built: Built) -> Pins:
    """What both ends must have the same of."""
    return Pins(config=shared(built.config), base=built.base.fingerprint, layout=message.layout(built.adapter.spec.leaves))


def shared(config: RunConfig) -> str:
    """Digest of what decides a run on every machine alike: not where data is, who holds it, or what computes it."""
    decides = {"seed", "rounds", "checkpoint_every", "secure_aggregation", "adapter", "method", "model"}
    said = config.model_dump(mode="json", include=decides, exclude_defaults=True)
    said |= {"own": True, "slots": config.partition.slots_per_task} if config.own else {}
    for name in ("device", "name", "revision"):  # what the model is, its own digest says
        said.get("model", {}).pop(name, None)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def host(built: Built, client: int, folder: Path) -> Host:
    """A client's side, over its part of the data; ``folder``: for its own state."""
    engine = copy(built.engine)  # of many clients in one process each has its own view and memory
    engine.view = replace(built.view, slots={slot: data for slot, data in built.view.slots.items() if slot.client == client})
    config = built.config
    keep = 2 * config.checkpoint_every + 1
    evaluator = replace(built.evaluator, view=engine.view)
    return Host(client, engine, evaluator, built.adapter.init, pins(built), config.seed, config.rounds, folder, keep)


def fits(built: Built, client: int, slots: int) -> None:
    """Raise if a client cannot have so many slots under the run's method."""
    method, places = built.method, built.config.partition.slots_per_task
    method.assign.check_clients([client] * slots, places)
    clusters = method.assign.rows - 1  # none: every task may have an adapter of its own, however many there are
    most = 1 if method.slots == "client" else clusters * places or SLOTS
    if slots > most:
        raise CompositionError(f"{slots} slots of client {client}, at most {most} are possible", where="method.tasks")


def run_id(directory: Path) -> str:
    """What was drawn for the run in this directory, or is now."""
    path = directory / "run-id"
    if not path.exists():
        write_atomic(path, secrets.token_hex(16).encode())
    return path.read_text(encoding="ascii")


def remote(built: Built, transport: Transport, run: str, deadline: float = 3600.0) -> Remote:
    """The server's side; ``run``: see :func:`run_id`. Where clients have data of their own, they evaluate, too.

    Raises:
        CompositionError: trained leaves stay with the clients, which this server could not evaluate.
    """
    if not built.bank_is_complete and not built.config.own:
        raise CompositionError(
            "trained leaves stay on the clients, and the server cannot evaluate what it does not have",
            where="method",
            fix="train it by one process, let all leaves travel, or let clients evaluate: partition.how = 'own'",
        )
    config, client = built.config, built.program.client
    whose = (config.seed, config.rounds, None if config.own else built.view.roster, pins(built), run)
    engine = Remote(transport, built.adapter.spec, client, *whose, built.fingerprint, deadline, fits=partial(fits, built))
    if config.own:
        built.view, built.asked = Elsewhere({}, {}, engine=engine), partial(evaluation, engine)
    return engine
