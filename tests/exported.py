"""What a run's folder of adapters should hold, derived anew from the state: the oracle of the export tests."""

from __future__ import annotations

from fedquilt import tree
from fedquilt.runs.build import Built
from fedquilt.types import Hub, State


def adapters(built: Built, hub: Hub) -> dict[str, State]:
    """Folder name -> adapter: rows in use, or every slot with its private leaves."""
    if built.bank_is_complete:
        return {f"row-{row:02d}": tree.row(hub.bank, row) for row in sorted(set(hub.table.values()))}
    return {
        f"client-{slot.client:03d}-slot-{slot.number}": built.engine.state_of(slot, tree.row(hub.bank, hub.row_of(slot)))
        for slot in built.view.slots
    }
