"""Tasks that appear in mid-run: nobody sees them before, everybody with their data has them from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from door import committed, fedquilt, journal, result, write_config
from tiny import tiny_config as file_config

from fedquilt import tree
from fedquilt.data.view import View, make_view
from fedquilt.runs.launch import resume, run
from fedquilt.runs.progress import Silent
from fedquilt.testing import SIZES, agree, run_tiny, tiny_config, tiny_partition, tiny_tasks
from fedquilt.types import Slot

METHOD = {"lr": 1e-2, "steps": 2, "batch": 4}


def config(name: str, late: str, first_round: int, **more: Any) -> Any:
    tasks = [
        {"name": task, "source": "file:unused.csv", **({"first_round": first_round} if task == late else {})} for task in SIZES
    ]
    return tiny_config(name, tasks=tasks, method={**METHOD, **more.pop("method", {})}, **more)


@pytest.mark.parametrize("seed", range(20))
def test_slots_that_are_there_are_numbered_without_gaps(seed: int) -> None:
    """Against the partition itself, task by task; a slot never changes its task."""
    stream = np.random.default_rng(seed)
    arrives = {name: int(stream.integers(1, 4)) for name in SIZES}
    view = make_view(tiny_tasks(), tiny_partition(), "task", seed, arrives)
    for number in (1, 2, 3):
        here = [name for name in SIZES if arrives[name] <= number]
        truth = view.truth(number)
        held = {client: {name for name in here if SIZES[name][client]} for client in range(4)}
        assert {c: {truth[slot][0] for slot in truth if slot.client == c} for c in held} == held
        expected = {client: len(names) for client, names in held.items() if names}
        assert view.roster(number) == expected
        assert list(truth) == [Slot(client, n) for client, count in expected.items() for n in range(count)]
        assert all(view.slots[slot].tasks == names for slot, names in truth.items())


def test_a_mixed_slot_grows() -> None:
    view: View = make_view(tiny_tasks(), tiny_partition(), "client", 0, {"shape": 2})
    assert view.data(Slot(0, 0), 1).tasks == ("amount", "colour")
    assert view.data(Slot(0, 0), 1).samples == SIZES["amount"][0] + SIZES["colour"][0]
    assert view.data(Slot(0, 0), 2) is view.slots[Slot(0, 0)]
    assert view.truth(1)[Slot(2, 0)] == ("amount",)


def after(rounds: int, found: Any) -> dict[str, torch.Tensor]:
    """What so many rounds of a run with the tasks of its configuration end with: server and clients."""
    return run_tiny(found, rounds=rounds).tensors()


@pytest.mark.parametrize(("name", "more"), [("fedit", {}), ("centralised_lora", {"mixed": True})])
def test_before_it_arrives_a_task_might_as_well_not_exist(name: str, more: Any) -> None:
    """The same bits as without it until the round before; other ones from its round on."""
    late = config(name, "shape", 3, rounds=3, method=more)
    never = late.model_copy(update={"tasks": tuple(task for task in late.tasks if task.name != "shape")})
    before, neither = after(2, late), after(2, never)
    assert before.keys() == neither.keys()
    assert all(torch.equal(x, neither[key]) for key, x in before.items())
    assert tree.max_difference(after(3, late), after(3, never)) > 1e-6


def test_who_keeps_an_optimiser_trains_beside_newcomers() -> None:
    """One slot per task, centralised: one of them begins later, with fresh moments."""
    fast = run_tiny(config("centralised_lora", "shape", 2, rounds=3))
    slow = run_tiny(config("centralised_lora", "shape", 2, rounds=3, engine="sequential"))
    assert agree(fast, slow)
    assert any("/moments/" in key for key in fast.memory)


@pytest.mark.parametrize("features", ["b_factors", "history", "fingerprint"])
def test_newcomers_of_mid_run_are_clustered_with_the_others(features: str) -> None:
    """Both engines; those of the late task have no row before it is there, and no reply is refused."""
    found = run_tiny(config("fltac", "shape", 2, rounds=3, method={"features": features, "tasks": 3}))
    slow = run_tiny(config("fltac", "shape", 2, rounds=3, engine="sequential", method={"features": features, "tasks": 3}))
    assert agree(found, slow)
    assert [line["jobs"] for line in found.rounds] == [len(found.built.view.truth(n)) for n in (1, 2, 3)]
    assert found.rounds[0]["jobs"] < found.rounds[1]["jobs"]
    assert set(found.hub.table) == set(found.built.view.slots)
    assert not [line for line in found.rounds if line["rejected"]]


def test_a_run_from_a_file_and_its_report(tmp_path: Path) -> None:
    path = write_config(tmp_path, "fltac", method={**METHOD, "tasks": 3})
    assert fedquilt("run", path, "--dir", tmp_path / "run", "--set", "tasks.0.first_round=2").code == 0
    tasks = [{slot["task"] for slot in line["slots"]} for line in journal(tmp_path / "run", "evals.jsonl")]
    assert [tasks[-1] - found for found in tasks] == [{"colour"}, {"colour"}, set()], "at the start, in round 1, in round 2"
    assert journal(tmp_path / "run", "evals.jsonl")[0]["tasks"]["colour"]["slot_mean"] is None
    assert fedquilt("report", tmp_path / "run").code == 0


class Counted(Silent):
    """What was announced, and what was done."""

    announced = made = 0

    def start(self, total: int, text: str) -> None:
        self.announced += total

    def advance(self, amount: int = 1, text: str = "") -> None:
        self.made += amount


@pytest.mark.parametrize("name", ["fltac", "centralised_lora"])
def test_the_steps_that_are_announced_are_made(name: str, tmp_path: Path) -> None:
    """Also where newcomers make more of them, whenever they come: with their task, or when they are sampled."""
    more: dict[str, Any] = {"participation": 0.5, "first_effort": 3.0} if name == "fltac" else {}
    raw = file_config(tmp_path, name, method={**METHOD, **more}, rounds=6, seed=5)
    late = raw.model_copy(update={"tasks": (raw.tasks[0].model_copy(update={"first_round": 3}), *raw.tasks[1:])})
    say = Counted()
    run(late, directory=tmp_path / "run", progress=say)
    assert say.made == say.announced > 0
    if name == "fltac":
        slots = {
            tuple(slot[key] for key in ("client", "slot"))
            for line in journal(tmp_path / "run", "routes.jsonl")
            for slot in line["slots"]
        }
        assert say.made == 2 * (sum(line["jobs"] for line in journal(tmp_path / "run")) + 2 * len(slots))


@pytest.mark.parametrize("method", [{"name": "fltac", "features": "fingerprint"}, {"name": "centralised_lora"}])
def test_a_run_that_stopped_before_the_task_came_ends_with_the_same_bits(tmp_path: Path, method: Any) -> None:
    """Fingerprints of newcomers on the server; moments and private adapters on the client."""
    name = method.pop("name")
    raw = file_config(tmp_path, name, method={**METHOD, **method}, rounds=3)
    tasks = [task.model_copy(update={"first_round": 3 if task.name == "colour" else 1}) for task in raw.tasks]
    late = raw.model_copy(update={"tasks": tuple(tasks)})

    class Stop(Silent):
        def line(self, text: str) -> None:
            if text.startswith("round 1/"):
                raise KeyboardInterrupt

    run(late, directory=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(late, directory=tmp_path / "cut", progress=Stop())
    assert committed(tmp_path / "cut") == 1
    resume(tmp_path / "cut")
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_a_task_that_never_comes_or_a_start_without_any_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    assert "after the last round" in fedquilt("run", path, "--set", "tasks.1.first_round=99").complaint(2)
    every = [word for i in range(3) for word in ("--set", f"tasks.{i}.first_round=2")]
    assert "no task is there in round 1" in fedquilt("run", path, *every).complaint(2)
