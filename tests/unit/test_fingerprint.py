"""Fingerprints of data: what they are, who sends them, what the server makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config as file_config
from uploads import SPEC, World, federation, new_hub, same_partition

from fedquilt import assign, local, method, tree
from fedquilt.assign.features import standardised
from fedquilt.assign.history import recall
from fedquilt.engine.batches import assemble
from fedquilt.errors import CompositionError
from fedquilt.gate import Gate
from fedquilt.models.fingerprint import Fingerprint, Fisher
from fedquilt.models.loading import Base
from fedquilt.runs.plan import plan
from fedquilt.testing import Outcome, build_tiny, run_tiny, tiny_base, tiny_config, tiny_tasks
from fedquilt.types import Job, Leaf, Reply, Round, Slot
from fedquilt.wire import message

TWO = federation(*[[0, 1], [1, 0], [0], [1]] * 3)


def outcome(base: Base | None = None, **more: Any) -> Outcome:
    options = {"lr": 1e-2, "steps": 2, "batch": 4, "features": "fingerprint", **more.pop("method", {})}
    return run_tiny(tiny_config("fltac", method=options, **more), base)


@pytest.mark.parametrize("model", ["bert", "roberta", "vit", "dinov2", "llama", "gpt2"])
def test_it_is_the_mean_last_hidden_state_of_the_frozen_base(model: str) -> None:
    kind = "generation" if model in ("llama", "gpt2") else "classification"
    config = tiny_config("fltac", kind, method={"lr": 0.1, "steps": 1}, model={"name": f"tiny:{model}", "precision": "float64"})
    base = tiny_base(config)
    task = tiny_tasks(0, kind, base.transform)["colour"]
    batch = assemble([(task, 0, i) for i in range(5)], 0)
    found = Fingerprint(base)(batch)
    assert found.shape == (5, Fingerprint(base).size)
    assert found.dtype == torch.float32
    for i in range(5):  # alone, so without padding
        alone = assemble([(task, 0, i)], 0) if base.head else assemble([(task, 0, i)], 0).prompts()
        if alone.pixels is not None:
            assert torch.allclose(Fingerprint(base)(alone)[0], found[i], atol=1e-6)
            continue
        types = {"token_type_ids": alone.types[None].clamp(max=base.model.config.type_vocab_size - 1)} if base.head else {}
        with torch.no_grad():
            hidden = base.model.base_model(input_ids=alone.tokens[None], **types).last_hidden_state[0]
        assert torch.allclose(hidden.mean(0).float(), found[i], atol=1e-6)


@pytest.mark.parametrize("features", ["fingerprint", "fisher"])
def test_both_engines_send_the_same(features: str) -> None:
    fast, slow = (outcome(engine=engine, method={"features": features}) for engine in ("vectorised", "sequential"))
    assert fast.hub.table == slow.hub.table
    assert tree.max_difference(fast.tensors(), slow.tensors()) <= 1e-10
    sent = [found.hub.memory["history/fingerprint"] for found in (fast, slow)]
    torch.testing.assert_close(*sent, rtol=1e-5, atol=1e-6)
    assert features == "fisher" or torch.equal(*sent)
    assert not bool(fast.hub.memory["history/fingerprint"].isnan().any())


@pytest.mark.parametrize("model", ["bert", "llama", "vit", "deberta-v2"])
def test_fisher_is_the_log_mean_square_of_batch_gradients(model: str) -> None:
    """By transformers' own model with peft's own layers, batch by batch; the level is taken away."""
    kind = "generation" if model == "llama" else "classification"
    config = tiny_config("fltac", kind, method={"lr": 0.1, "steps": 1, "features": "fisher"}, adapter={"rank": 2},
                         model={"name": f"tiny:{model}", "precision": "float64"}, engine="sequential")  # fmt: skip
    built = build_tiny(config)
    task, start = built.tasks["colour"], built.adapter.init
    batches = [assemble([(task, 0, i) for i in rows], 0) for rows in ((0, 1, 2), (3, 4))]
    found = Fisher(built.network, built.adapter.spec).of(batches, start)
    names = [name for name in sorted(start) if name.endswith("lora_B")]
    squares = []
    for batch in batches:
        model_: Any = built.network
        leaves = {key: x.clone().requires_grad_(key in names) for key, x in start.items()}
        loss = model_.losses({key: x[None] for key, x in leaves.items()}, batch).sum()
        squares.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [leaves[name] for name in names])]) ** 2)
    mean = sum(squares) / 2  # type: ignore[arg-type]
    logs = torch.log(mean + 1e-12 * mean.max())
    torch.testing.assert_close(found, (logs - logs.mean()).float())
    assert found.shape == (built.fingerprint,)
    assert float(found.std()) > 0.1


@pytest.mark.parametrize("steps", [1, 3, 500])
def test_fisher_looks_at_no_more_examples_than_the_first_round_trains_on(steps: int) -> None:
    built = build_tiny(tiny_config("fltac", method={"lr": 0.1, "steps": steps, "batch": 2, "features": "fisher"}))
    now = Round(1, 0)
    jobs = built.program.plan(built.program.init(built.adapter.init), built.engine.roster(1), now)
    bank = built.program.init(built.adapter.init).bank
    for job in jobs:
        work = built.engine._work(job, bank)
        seen = [draw.batch() for draw in built.engine.seen(Fisher(built.network, built.adapter.spec), work)]
        assert sum(len(batch) for batch in seen) == min(2 * steps, work.data.samples)
        assert max(len(batch) for batch in seen) <= 2
        assert len({int(batch.keys[0]) for batch in seen}) == len(seen)  # dropout masks of their own
        assert len(list(built.engine.seen(Fingerprint(built.base), work))) == -(-work.data.samples // 2)


def test_fisher_needs_an_adapter_beside_the_head() -> None:
    for more in ({"head_features": True}, {"adapter": "head"}, {"adapter": "head", "head_features": True}):
        with pytest.raises(CompositionError):
            outcome(method={"features": "fisher", **more})


def test_no_gradient_is_no_description() -> None:
    class Flat:
        def losses(self, stack: Any, batch: Any) -> torch.Tensor:
            return (stack["enc.0.q/lora_B"] * 0.0).sum((1, 2))

    start = {leaf.name: torch.ones(leaf.shape, dtype=leaf.dtype) for leaf in SPEC.leaves}
    batch = assemble([(tiny_tasks()["colour"], 0, 0)], 0)
    found = Fisher(Flat(), SPEC).of([batch, batch], start)  # type: ignore[arg-type]
    assert found.shape == (2 * 4 * 2,)
    assert not bool(found.any())


def test_every_number_counts_alike() -> None:
    x = torch.tensor([[1.0, 100.0, 5.0], [3.0, 500.0, 5.0]])
    assert torch.equal(standardised(x, torch.ones(2)), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64))


def test_fisher_clusters_by_fingerprints_alone() -> None:
    """Uploads of pure noise; descriptions in two places; the server keeps nothing else of a slot."""
    world, hub = World(TWO), new_hub(3)
    noise = world.uploads(hub, 1, progress=dict.fromkeys(TWO, 0.0))
    stream = torch.Generator().manual_seed(0)
    place = torch.randn(2, 8, generator=stream)
    looks = torch.stack([place[TWO[slot]] + 0.1 * torch.randn(8, generator=stream) for slot in noise.origin])
    part = assign.kmeans(2, features="fisher")
    composed = method.Method("test", local.sgd(0.1, steps=1), slots="task", assign=part)
    after, _ = method.server_step(composed, SPEC, hub, replace(noise, extra={"fingerprint": looks}), Round(1, 0))
    assert same_partition(dict(after.table), TWO)
    assert set(recall(after.memory).total) == set()


def test_only_newcomers_send_one_and_it_is_counted() -> None:
    found, without = outcome(), outcome(method={"features": "history"})
    size = message.size([Leaf("fingerprint", (16,), "fingerprint", 0, dtype=torch.float32)])
    slots = len(found.built.view.slots)
    more = [one["bytes_up"] - other["bytes_up"] for one, other in zip(found.rounds, without.rounds, strict=True)]
    assert more == [size * slots, 0]
    assert [one["bytes_down"] for one in found.rounds] == [other["bytes_down"] for other in without.rounds]
    assert not [line for line in found.rounds if line["rejected"]]


def test_the_plan_says_what_it_adds(tmp_path: Path) -> None:
    """As many bytes as a message with nothing but the vector has."""
    config = file_config(tmp_path, "fltac", method={"features": "fingerprint", "lr": 1e-2, "steps": 1})
    more = message.size([Leaf("fingerprint", (16,), "fingerprint", 0, dtype=torch.float32)])
    assert [note for note in plan(config).notes if f"{more:,} bytes more" in note]
    assert not [
        note for note in plan(file_config(tmp_path, "fltac", method={"features": "b_factors"})).notes if "fingerprint" in note
    ]


def test_who_comes_later_sends_it_then() -> None:
    found = outcome(rounds=4, method={"participation": 0.5})
    past = recall(found.hub.memory)
    assert len({tuple(line["cohort"]) for line in found.rounds}) > 1
    assert past.fingerprint is not None
    assert len(past.fingerprint) == len(past.slots) == len(found.hub.table)
    assert not bool(past.fingerprint.isnan().any())
    assert not [line for line in found.rounds if line["rejected"]]


@pytest.mark.parametrize(
    ("sent", "row", "code"),
    [
        (torch.zeros(3), 0, None),
        (None, 1, None),
        (None, 0, "schema"),
        (torch.zeros(3), 1, "schema"),
        (torch.zeros(4), 0, "schema"),
        (torch.zeros(1, 3), 0, "schema"),
        (torch.zeros(3, dtype=torch.float64), 0, "schema"),
        ([0.0, 0.0, 0.0], 0, "schema"),
        (torch.tensor([0.0, float("nan"), 0.0]), 0, "nonfinite"),
        (torch.tensor([0.0, float("inf"), 0.0]), 0, "nonfinite"),
    ],
)
def test_the_gate(sent: Any, row: int, code: str | None) -> None:
    spec = replace(SPEC, leaves=())
    job, reply = Job(Slot(0, 0), row, Round(1, 0)), Reply(Slot(0, 0), 1, {}, 1.0, fingerprint=sent)
    accepted, rejected = Gate(spec, fingerprint=3)([reply], [job], ())
    assert [one.code for one in rejected] == ([] if code is None else [code])
    assert len(accepted) == (code is None)
    refused = Gate(spec)([reply], [job], ())[1]
    assert [one.code for one in refused] == ([] if sent is None else ["schema"]), "nobody asked for one"


@pytest.mark.parametrize("constraint", ["cannot-link", "none"])
def test_it_tells_tasks_apart_that_adapters_do_not(constraint: Any) -> None:
    """Adapters of pure noise; data in two places."""
    world, hub = World(TWO), new_hub(3)
    noise = world.uploads(hub, 1, progress=dict.fromkeys(TWO, 0.0))
    stream = torch.Generator().manual_seed(0)
    place = torch.randn(2, 8, generator=stream)
    looks = torch.stack([place[TWO[slot]] + 0.1 * torch.randn(8, generator=stream) for slot in noise.origin])
    tables = {}
    for how, extra in (("fingerprint", {"fingerprint": looks}), ("history", {})):
        part = assign.kmeans(2, features=how, constraint=constraint)  # type: ignore[arg-type]
        composed = method.Method("test", local.sgd(0.1, steps=1), slots="task", assign=part)
        after, _ = method.server_step(composed, SPEC, hub, replace(noise, extra=extra), Round(1, 0))
        tables[how] = dict(after.table)
    assert same_partition(tables["fingerprint"], TWO)
    assert not same_partition(tables["history"], TWO)
