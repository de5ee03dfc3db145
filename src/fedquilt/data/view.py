"""Who holds what: the clients' slots, and the truth about them that only clients and the evaluator may see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedquilt.data.encode import Task
from fedquilt.data.partition import Partition
from fedquilt.errors import DataError
from fedquilt.rng import numpy_generator
from fedquilt.types import Slot

SlotKind = Literal["task", "client", "pooled", "pooled-task"]


@dataclass(frozen=True)
class SlotData:
    """The examples behind one slot: which of each task's training examples. Never leaves the client."""

    parts: tuple[tuple[str, NDArray[np.int64]], ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its tasks: ground truth."""
        return tuple(name for name, _ in self.parts)

    @property
    def samples(self) -> int:
        """Training examples."""
        return sum(len(index) for _, index in self.parts)


@dataclass(frozen=True)
class View:
    """All data of a federation, client by client.

    ``slots``: in order, with everything that they will ever hold; ``arrives``: the round from which on clients have the data
    of a task (1 if it is not there). ``number``: a round; 0, before the first one, is like 1.
    """

    tasks: Mapping[str, Task]
    slots: Mapping[Slot, SlotData]
    arrives: Mapping[str, int] = field(default_factory=dict)

    def data(self, slot: Slot, number: int) -> SlotData:
        """What a slot holds in a round; nothing before its first task is there."""
        whole = self.slots[slot]
        if not self.arrives or all(self.arrives.get(name, 1) <= max(1, number) for name, _ in whole.parts):
            return whole
        return SlotData(tuple((name, index) for name, index in whole.parts if self.arrives.get(name, 1) <= max(1, number)))

    def roster(self, number: int) -> dict[int, int]:
        """What the server may know: client -> number of slots. Those that are there are 0, 1, ... of their client."""
        return dict(Counter(slot.client for slot in self.truth(number)))

    def truth(self, number: int) -> dict[Slot, tuple[str, ...]]:
        """Tasks of every slot that is there, for evaluation only."""
        held = {slot: self.data(slot, number).tasks for slot in self.slots}
        return {slot: names for slot, names in held.items() if names}


def make_view(
    tasks: Mapping[str, Task],
    partition: Partition,
    kind: SlotKind,
    seed: int,
    arrives: Mapping[str, int] | None = None,
    slots_per_task: int = 1,
) -> View:
    """Slots of one kind over a partition.

    ``task``: one slot per local task (FL-TAC), or ``slots_per_task`` of them with a part of its examples each; ``client``: one slot
    with all local tasks mixed (FedIT); ``pooled``: client 0 owns everything in one slot (centralised); ``pooled-task``: client 0
    with one slot per task.
    Slot numbers are a permutation drawn per client, so equal numbers of two clients mean nothing; slots of tasks that arrive later
    come after those that are there before. Clients without data have no slot.

    Raises:
        DataError: nobody has any data.
    """
    arrives = arrives or {}
    held = _held(tasks, partition, pooled=kind.startswith("pooled"))
    slots: dict[Slot, SlotData] = {}
    for client, parts in held.items():
        if not parts:
            continue
        if kind in ("client", "pooled"):
            slots[Slot(client, 0)] = SlotData(tuple(parts))
            continue
        if kind == "task":
            parts = [(name, rows[i::slots_per_task]) for name, rows in parts for i in range(min(slots_per_task, len(rows)))]
        order = numpy_generator(seed, "slots", client).permutation(len(parts)).tolist()
        for number, place in enumerate(sorted(order, key=lambda i: arrives.get(parts[i][0], 1))):  # stable: else as drawn
            slots[Slot(client, number)] = SlotData((parts[place],))
    if not slots:
        raise DataError("no client has any training example", where="[partition]", fix="fewer clients, or more data")
    return View(tasks, dict(sorted(slots.items())), arrives)


Parts = list[tuple[str, NDArray[np.int64]]]


def _held(tasks: Mapping[str, Task], partition: Partition, *, pooled: bool) -> dict[int, Parts]:
    """client -> its non-empty (task, examples); tasks in name order."""
    parts = {name: [tasks[name].train.usable(rows) for rows in partition.parts[name]] for name in sorted(tasks)}
    if pooled:
        return {0: [(name, np.sort(np.concatenate(rows))) for name, rows in parts.items()]}
    return {
        client: [(name, rows[client]) for name, rows in parts.items() if len(rows[client])] for client in range(partition.clients)
    }
