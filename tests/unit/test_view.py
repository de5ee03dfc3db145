"""Clients that keep a task's examples in several places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from door import fedquilt, write_config

from fedquilt.data.view import make_view
from fedquilt.testing import SIZES, agree, run_tiny, tiny_config, tiny_partition, tiny_tasks


@pytest.mark.parametrize("places", [1, 2, 3])
def test_the_places_of_a_task_share_its_examples(places: int) -> None:
    """Every example once, places of nearly equal size, no empty slot; without the option nothing changes."""
    view = make_view(tiny_tasks(), tiny_partition(), "task", 0, slots_per_task=places)
    whole = tiny_partition().parts
    for client in range(4):
        for name in SIZES:
            mine = [data.parts[0][1] for slot, data in view.slots.items() if slot.client == client and data.tasks == (name,)]
            assert len(mine) == min(places, SIZES[name][client])
            assert sorted(np.concatenate([np.zeros(0, int), *mine]).tolist()) == whole[name][client].tolist()
            assert not mine or max(map(len, mine)) - min(map(len, mine)) <= 1
    numbers = [slot.number for slot in view.slots if slot.client == 0]
    assert numbers == list(range(len(numbers)))
    if places == 1:
        plain = make_view(tiny_tasks(), tiny_partition(), "task", 0)
        assert [data.tasks for data in view.slots.values()] == [data.tasks for data in plain.slots.values()]


def test_both_engines_run_several_slots_of_one_task_and_other_methods_have_one() -> None:
    options = {"lr": 1e-2, "steps": 2, "batch": 4, "features": "fingerprint", "constraint": "none"}
    tables = {"method": options, "partition": {"slots_per_task": 2}}
    fast, slow = run_tiny(tiny_config("fltac", **tables)), run_tiny(tiny_config("fltac", engine="sequential", **tables))
    assert agree(fast, slow)
    assert len(fast.hub.table) == sum(min(2, n) for sizes in SIZES.values() for n in sizes)
    mixed = run_tiny(tiny_config("fedit", method={"lr": 1e-2, "steps": 2}, partition={"slots_per_task": 2}))
    assert len(mixed.built.view.slots) == 4, "a method with one adapter per client has one slot per client"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("partition.slots_per_task=2", "the places of one task could never come together"),
        ("method.tasks=1", "a client has 3 slots for 1 clusters"),
        ("method.tasks=2", "a client has 3 slots for 2 clusters"),
    ],
)
def test_a_constraint_that_cannot_hold_is_refused_before_training(tmp_path: Path, change: str, message: str) -> None:
    """Also where only a late task makes it impossible."""
    path = write_config(tmp_path, "fltac", rounds=3)
    late = ("--set", "tasks.0.first_round=3")
    said = fedquilt("run", path, "--set", change, *(late if "tasks=2" in change else ()), "--dir", tmp_path / "run").complaint(2)
    assert message in said
    assert "method.constraint" in said
    assert not (tmp_path / "run" / "hub.json").exists()
