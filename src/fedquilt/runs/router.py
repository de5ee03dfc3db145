"""Which adapter answers when nobody says of which task an input is: the bank row whose data looks most like it to the frozen base.

FL-TAC (Ping et al. 2024) leaves this open: at inference it is told the task. A row's prototype is the mean of the fingerprints of
the slots in it; an input is compared by its own mean last hidden state. With ``features = "fingerprint"`` the server has these from
the first uploads; otherwise every slot that took part sends its own when it is asked for, once more ``d`` numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.history import recall
from fedquilt.data.marks import Index
from fedquilt.data.partition import refuse_own
from fedquilt.errors import CompositionError, ConfigError, StateError
from fedquilt.evaluate import matched_rows
from fedquilt.models.fingerprint import Fingerprint
from fedquilt.models.scoring import ROWS
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.build import Built
from fedquilt.runs.reopen import reopen
from fedquilt.runs.store import ADAPTERS
from fedquilt.types import Batch, Hub, Slot

FILE = "router.safetensors"


@dataclass(frozen=True)
class Router:
    """Prototypes ``[R, d]`` of the bank rows ``rows [R]``."""

    rows: Tensor
    prototypes: Tensor

    @classmethod
    def of(cls, held: Sequence[int], fingerprints: Tensor) -> Router:
        """From the rows of some slots and their ``fingerprints [S, d]``."""
        owner = torch.tensor(held)
        rows = torch.unique(owner)
        return cls(rows, torch.stack([fingerprints[owner == row].double().mean(0).float() for row in rows.tolist()]))

    def __call__(self, look: Tensor) -> Tensor:
        """The row with the nearest prototype (Euclidean) for each of the inputs ``look [n, d]``: ``[n]``."""
        distance = torch.cdist(look.double(), self.prototypes.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return self.rows[distance.argmin(1)]

    def together(self, look: Tensor, units: Sequence[Index]) -> Tensor:
        """The rows ``[n]`` of inputs ``look [n, d]``; those of a unit go where the mean of their looks goes."""
        rows = torch.empty(len(look), dtype=torch.long)
        for unit, row in zip(units, self(torch.stack([look[unit].double().mean(0) for unit in units])).tolist(), strict=True):
            rows[unit] = row
        return rows

    def save(self, folder: Path) -> None:
        """``router.safetensors`` with the tensors ``rows`` and ``prototypes``."""
        write_atomic(folder / FILE, save_tensors({"rows": self.rows, "prototypes": self.prototypes}))


def router_of(built: Built, hub: Hub) -> Router | None:
    """From the mean hidden states that the server keeps; None if it has none."""
    past = recall(hub.memory)
    if past.fingerprint is None or built.program.client.fingerprint != "states":
        return None
    return Router.of([hub.row_of(slot) for slot in past.slots], past.fingerprint)


def ask(built: Built, hub: Hub) -> Router:
    """From mean hidden states that all slots that took part send now, of the examples that a newcomer would look at."""
    look = Fingerprint(built.base)

    def seen(slot: Slot) -> Iterator[Batch]:
        return (draw.batch() for draw in built.engine.sampler.some(slot, built.view.data(slot, hub.step), look.examples))

    found = [look.of(seen(slot), {}) for slot in sorted(hub.table)]
    return Router.of([hub.table[slot] for slot in sorted(hub.table)], torch.stack(found))


def route(run: Path) -> dict[str, Any]:
    """How well the router of a run does on the evaluation splits; also written to ``router.json`` in the run directory, and the
    router to ``adapters/router.safetensors``.

    Per task: ``right``, the share of examples that go to the task's own row; the task's metrics with every example answered by
    the row it was routed to, ``routed``, and by the task's own row, ``told``. A question with candidates is one example: all of
    them go where the mean of their fingerprints goes.

    Raises:
        StateError: nothing committed there, or no round has finished.
        ConfigError: everybody has the same adapter.
        CompositionError: its rows are not complete adapters, or whole models.
    """
    built, hub = reopen(run)
    refuse_own(built.config.partition)
    if not built.bank_is_complete:
        what, why = "a router needs rows that are whole adapters", "some leaves are private to each client"
        raise CompositionError(what, where=str(run), why=why, fix='train with adapter.head = "federated" or "frozen"')
    if tree.length(hub.bank) == 1:
        what, fix = "nothing to route between: there is one adapter for all", "train with a method that clusters, such as fltac"
        raise ConfigError(what, where=str(run), fix=fix)
    if not hub.table:
        raise StateError("nothing to route by: no round has finished", where=str(run), fix=f"fedquilt resume {run}")
    if built.adapter.weights:
        what, why = "a router needs adapters that fit into one pass", "every row is a whole model"
        raise CompositionError(what, where=str(run), why=why, fix="train an adapter, such as lora")
    router = router_of(built, hub) or ask(built, hub)
    (run / ADAPTERS).mkdir(exist_ok=True)
    router.save(run / ADAPTERS)
    record = {"tasks": evaluate(built, hub, router), "rows": router.rows.tolist()}
    write_atomic(run / "router.json", json.dumps(record, indent=1).encode())
    return record


def evaluate(built: Built, hub: Hub, router: Router) -> dict[str, Any]:
    """Per task what :func:`route` says; a task that no row was matched with is left out."""
    look, evaluator, found = Fingerprint(built.base), built.evaluator, {}
    for name, own in sorted(matched_rows(hub.table, built.view.truth(hub.step)).items()):
        task, batches = built.view.tasks[name], evaluator.split(name)
        asked = evaluator.prompts(task, evaluator.texts.rows) if evaluator.texts else None
        looks = torch.cat([look(batch) for batch in batches])
        units = task.marks.take(evaluator.order(task)).units(len(looks))
        rows = router.together(looks, units)
        written = router(torch.cat([look(part) for part in asked.batch.parts(ROWS)])) if asked else rows[:0]
        scores = {
            way: evaluator.score(
                hub.bank, name, owned(batches, mine), asked and asked._replace(batch=replace(asked.batch, owner=its))
            )
            for way, mine, its in (
                ("routed", rows, written),
                ("told", torch.full_like(rows, own), torch.full_like(written, own)),
            )
        }
        right = float(np.mean([int(rows[unit[0]]) == own for unit in units]))
        found[name] = {"row": own, "right": right, **scores}
    return found


def owned(batches: Sequence[Batch], rows: Tensor) -> list[Batch]:
    """The batches with their examples, all of them in turn, answered by ``rows``."""
    parts = rows.split([len(batch) for batch in batches])
    return [replace(batch, owner=mine) for batch, mine in zip(batches, parts, strict=True)]
