"""Every row of the bank as a folder that plain peft (or transformers) opens."""

from __future__ import annotations

from pathlib import Path

import torch

from fedquilt import tree
from fedquilt.adapters.export import write
from fedquilt.assign.chosen import MASS
from fedquilt.runs.build import Built
from fedquilt.runs.reopen import reopen
from fedquilt.runs.router import FILE, router_of
from fedquilt.runs.store import ADAPTERS
from fedquilt.types import Hub, State


def export(run: Path, out: Path | None = None) -> list[Path]:
    """Export the last committed state of a run directory; returns the folders.

    Raises:
        StateError: nothing committed there.
    """
    run = Path(run)
    built, hub = reopen(run)
    return export_bank(built, hub, out or run / ADAPTERS)


def export_bank(built: Built, hub: Hub, out: Path) -> list[Path]:
    """``row-NN`` per row in use; ``client-CCC-slot-S`` per slot where private leaves make every slot an adapter of its own.

    Beside rows whose data the server has fingerprints of, :data:`fedquilt.runs.router.FILE` says which row suits an input.
    """
    states: dict[str, State] = {}
    if built.bank_is_complete:
        used = sorted({0, *hub.table.values()} if tree.length(hub.bank) == 1 else set(hub.table.values()))
        if MASS in hub.memory:  # clients choose, and the server knows how many, not who
            used = (torch.nonzero(hub.memory[MASS] > 0).flatten() + 1).tolist()
        states = {f"row-{row:02d}": tree.row(hub.bank, row) for row in used}
    elif not built.config.own:  # else whole adapters are on the clients' machines alone
        states = {
            f"client-{slot.client:03d}-slot-{slot.number}": built.engine.state_of(slot, tree.row(hub.bank, hub.row_of(slot)))
            for slot in built.view.truth(hub.step)
        }
    folders = [write_adapter(built, state, out / name) for name, state in states.items()]
    router = router_of(built, hub) if built.bank_is_complete else None
    (out / FILE).unlink(missing_ok=True)  # one that was asked for belongs to the rows that were there then
    if router is not None:
        router.save(out)
    return folders


def write_adapter(built: Built, state: State, folder: Path) -> Path:
    """One adapter; where heads are per task, one folder per task inside it."""
    heads = built.evaluator.heads if built.adapter.heads > 1 else {"": 0}
    for name, head in heads.items():
        single = {key: x[head] if name and "/head." in key else x for key, x in state.items()}
        write(built.base, built.adapter, single, folder / name, f"{built.config.name}: {folder.name} {name}".rstrip())
    return folder
