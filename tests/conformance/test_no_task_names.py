"""Ground truth stays with the clients and the evaluator: nothing that crosses the engine's seam names a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

from fedquilt.data.view import make_view
from fedquilt.engine.base import InProcess
from fedquilt.testing import CLASSES, SIZES, run_tiny, tiny_config, tiny_partition, tiny_tasks
from fedquilt.types import Hub, Job, Reply, Updates


def leaves(value: Any) -> Iterator[Any]:
    """Everything inside a message, keys of mappings included."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield field.name
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(key)
            yield from leaves(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


@pytest.fixture
def crossing(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that the server's side got from the engine, and sent to it."""
    seen: list[Any] = []
    roster, submit, poll = InProcess.roster, InProcess.submit, InProcess.poll

    def spy(original: Any) -> Any:
        def call(self: InProcess, *args: Any, **kwargs: Any) -> Any:
            out = original(self, *args, **kwargs)
            seen.extend([dict(a) if hasattr(a, "keys") else a for a in args] + [dict(out) if hasattr(out, "keys") else out])
            return out

        return call

    for name, original in (("roster", roster), ("submit", submit), ("poll", poll)):
        monkeypatch.setattr(InProcess, name, spy(original))
    return seen


@pytest.mark.parametrize("method", ["fltac", "fedit", "local_only"])
def test_nothing_that_crosses_the_seam_names_a_task_or_a_label(method: str, crossing: list[Any]) -> None:
    run_tiny(tiny_config(method, method={"lr": 1e-2, "steps": 1, "batch": 4}))
    found = list(leaves(crossing))
    assert any(isinstance(x, torch.Tensor) for x in found)  # the spy sees messages at all
    words = [x for x in found if isinstance(x, str)]
    assert not [word for word in words for task in SIZES if task in word]
    integers = [x for x in found if isinstance(x, torch.Tensor) and not x.dtype.is_floating_point]
    assert not integers, "labels and token ids are integers; updates are not"


def test_slot_numbers_say_nothing_about_the_task() -> None:
    """Over many seeds every task stands at every number equally often (three-slot client: 1/3 each, 5 sigma)."""
    tasks, partition = tiny_tasks(), tiny_partition()
    counts: Counter[tuple[str, int]] = Counter()
    draws = 900
    for seed in range(draws):
        view = make_view(tasks, partition, "task", seed)
        counts.update((data.tasks[0], slot.number) for slot, data in view.slots.items() if slot.client == 0)
    sigma = (draws * (1 / 3) * (2 / 3)) ** 0.5
    assert len(counts) == len(CLASSES) * 3
    assert all(abs(count - draws / 3) < 5 * sigma for count in counts.values())


def test_the_nouns_have_no_field_for_it() -> None:
    names = {field.name for noun in (Job, Reply, Updates, Hub) for field in fields(noun)}
    assert not names & {"task", "tasks", "label", "labels", "text", "texts", "tokens", "truth"}
