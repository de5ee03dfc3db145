"""What the in-process engines owe to those who keep what they return."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedquilt.engine.base import Work
from fedquilt.engine.batches import join
from fedquilt.local import sgd
from fedquilt.method import compose
from fedquilt.runs.build import build
from fedquilt.types import Job, Round
from tests.tiny import tiny_config


@pytest.mark.parametrize("engine", ["vectorised", "sequential"])
def test_what_a_client_keeps_is_no_view_of_its_cohort(engine: str, tmp_path: Path) -> None:
    """A view keeps all that was trained together in memory, and is written whole into a checkpoint."""
    built = build(tiny_config(tmp_path, "fedit", engine=engine, adapter={"rank": 2, "head": "private"}))
    persistent = replace(built.method, local=replace(built.method.local, memory="persist"))
    program = compose(persistent, built.adapter.spec)
    built.engine.client = program.client
    hub = program.init(built.adapter.init)
    jobs = program.plan(hub, built.engine.roster(1), Round(1, 0))
    assert len(jobs) > 1
    built.engine.poll(built.engine.submit(jobs, hub.bank))
    for job in jobs:
        kept = built.engine.kept.get(job.slot)
        assert kept.keys() == {"private", "moments"}
        for x in (*kept["private"].values(), *kept["moments"].values()):
            assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


@pytest.mark.parametrize("engine", ["vectorised", "sequential"])
def test_an_optimiser_without_state_persists_as_nothing(engine: str, tmp_path: Path) -> None:
    built = build(tiny_config(tmp_path, "fedit", engine=engine))
    program = compose(replace(built.method, local=sgd(lr=0.1, steps=1, batch=2, memory="persist")), built.adapter.spec)
    built.engine.client = program.client
    hub = program.init(built.adapter.init)
    jobs = program.plan(hub, built.engine.roster(1), Round(1, 0))
    replies = built.engine.poll(built.engine.submit(jobs, hub.bank))
    assert len(replies) == len(jobs)
    assert not any(built.engine.kept.get(job.slot) for job in jobs)


def test_draws_that_are_read_together_are_those_read_alone(tmp_path: Path) -> None:
    built = build(tiny_config(tmp_path, "fedit"))
    slots = sorted(built.view.slots)
    jobs = {slot: (Job(slot, 0, Round(1, 0)), built.view.data(slot, 1)) for slot in slots}
    draws = [next(built.engine.sampler.draws(job, data, 1, {"colour": 2})) for job, data in jobs.values()]
    together, alone = join(draws), [draw.batch() for draw in draws]
    assert [batch.lengths.tolist() for batch in alone] == [draw.lengths for draw in draws]
    for name in ("tokens", "types", "lengths", "labels", "classes", "head", "keys"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(batch, name) for batch in alone])), name
    assert together.owner.tolist() == [g for g, batch in enumerate(alone) for _ in range(len(batch))]
    assert not any(batch.owner.any() for batch in alone)
    assert len(set(together.keys.tolist())) == len(together)


@pytest.mark.parametrize("method", ["fedit", "ia3", "fedtt"])
def test_a_slot_that_diverges_takes_nobody_along(method: str, tmp_path: Path) -> None:
    """Slots share products, in which what is no number would spread: the others must train as the sequential engine trains them."""
    overrides: dict[str, Any] = {"method": {"name": "fedit"}, "adapter": {"family": "ia3", "rank": None}} if method == "ia3" else {}
    losses: dict[str, list[float]] = {}
    for engine in ("sequential", "vectorised"):
        built = build(tiny_config(tmp_path, "fedtt" if method == "fedtt" else "fedit", engine=engine, **overrides))
        works = []
        for number, slot in enumerate(sorted(built.view.slots)):
            start = {key: x * 1e38 if number == 1 else x for key, x in built.adapter.init.items()}
            works.append(Work(Job(slot, 0, Round(1, 0)), built.view.data(slot, 1), start, None, 2, {}))
        done = built.engine.train(works)
        assert not all(bool(torch.isfinite(x).all()) for x in done[1].state.values()), "the case does not diverge"
        losses[engine] = [one.loss for number, one in enumerate(done) if number != 1]
        assert all(bool(torch.isfinite(x).all()) for number, one in enumerate(done) if number != 1 for x in one.state.values())
    assert losses["vectorised"] == pytest.approx(losses["sequential"], rel=1e-5)
