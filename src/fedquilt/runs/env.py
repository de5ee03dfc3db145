"""env.json: with what a run was made, and whether it can go on with what there is now."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedquilt.errors import StateError
from fedquilt.models.loading import by_onednn
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.build import Built, set_threads
from fedquilt.types import Hub

PACKAGES = ("fedquilt", "torch", "transformers", "peft", "numpy", "scikit-learn", "scipy", "safetensors")


def write_env(built: Built, folder: Path) -> None:
    """Of a run that begins."""
    config = built.config
    env = {
        "config": config.digest(),
        "chosen": json.loads(config.chosen()),
        "threads": set_threads(config),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "products": "oneDNN" if by_onednn(config.model) else "torch",
        "drawn": list(built.base.drawn),
    }
    write_atomic(folder / "env.json", json.dumps(env, indent=1).encode())


def read_env(folder: Path) -> dict[str, Any]:
    """What was written.

    Raises:
        StateError: it is not there or not readable.
    """
    try:
        env: dict[str, Any] = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError("env.json is missing or corrupt", where=str(folder), fix="start the run anew") from error
    return env


def refuse_other(built: Built, hub: Hub, folder: Path) -> None:
    """Whether the adapters in a run's directory are of the model and the adapter that its configuration stands for now.

    Raises:
        StateError: an earlier version trained other leaves, or beside other layers that the checkpoint lacks.
    """
    shapes = {leaf.name: (built.method.assign.rows, *leaf.shape) for leaf in built.adapter.spec.leaves}
    found = {name: tuple(x.shape) for name, x in hub.bank.items()}
    if found != shapes:
        names = sorted(name for name in {*found, *shapes} if found.get(name) != shapes.get(name))
        what, why = f"the run has another adapter than its configuration stands for ({names[0]})", "another version began it"
    elif read_env(folder).get("drawn", []) != list(built.base.drawn):
        what, why = "the run has another base model", "what its checkpoint lacks was not drawn from the seed when it began"
    else:
        return
    raise StateError(what, where=str(folder), why=why, fix="start it anew, or use the version that began it")
