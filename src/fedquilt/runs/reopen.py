"""A run directory back in memory."""

from __future__ import annotations

import sys
from pathlib import Path

from fedquilt.data.partition import Partition
from fedquilt.errors import StateError
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config
from fedquilt.runs.env import refuse_other
from fedquilt.runs.store import Store
from fedquilt.types import Hub


def reopen(run: Path) -> tuple[Built, Hub]:
    """A run directory's federation as its last committed round left it, and that round's hub.

    Raises:
        StateError: no run there, nothing committed, that round is damaged (who asks for adapters is not given older ones), or
            :func:`~fedquilt.runs.env.refuse_other`.
    """
    if not (run / "config.toml").is_file():
        fix = "give the folder that `fedquilt run` printed"
        raise StateError(f"'{run}' is not a run directory", where=str(run), why="it holds no config.toml", fix=fix)
    store = Store(run)
    store.clients.most_open = sys.maxsize  # the run may still be going on, and removes what it has replaced
    try:
        loaded = store.load(strict=True)
    except StateError as error:
        onwards = f"fedquilt resume {run} goes on from the round before, if that is whole; of a run that is going on, try again"
        raise StateError(error.what, where=error.where, why=error.why, fix=error.fix or onwards) from error
    if loaded is None:
        raise StateError("the run has no committed round", where=str(run), fix=f"fedquilt resume {run}")
    built = build(load_config(run / "config.toml"), saved=Partition.load(run / "partition.json"))
    refuse_other(built, loaded[0], run)
    built.engine.kept = store.clients
    return built, built.seated(loaded[0])
