"""The server step as equations, and the mixes that composition refuses."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from uploads import SPEC, World, federation, make_updates, new_hub, state

from fedquilt import assign, local, pick, reduce, sample, tree, wire
from fedquilt.errors import CompositionError
from fedquilt.method import Method, collect, compose, rebase, server_step
from fedquilt.methods.centralised import centralised_full, centralised_lora
from fedquilt.methods.fedit import fedit
from fedquilt.methods.fltac import fltac
from fedquilt.methods.head_only import head_only
from fedquilt.methods.local_only import local_only
from fedquilt.privacy.sums import Total
from fedquilt.types import Hub, Job, Leaf, Round, Slot, Spec, State, Updates
from fedquilt.wire.chain import Plain

NOW = Round(1, 0)
LOCAL = local.sgd(lr=1.0, steps=1)
WEIGHTS = {Slot(client, number): float(3 * client + 2 * number + 1) for client in range(6) for number in range(3)}
HEAD = "classifier/head.weight"


def weighted(updates: Updates, mine: list[bool]) -> dict[str, Tensor]:
    """FedAvg by numpy: the sample-weighted mean of the uploaded adapters themselves."""
    where = np.array(mine)
    out = {}
    for key, delta in updates.delta.items():
        whole = (updates.start[key] + delta).numpy()[where]
        out[key] = torch.from_numpy(np.average(whole, axis=0, weights=updates.weight.numpy()[where]))
    return out


# -- equivalences --------------------------------------------------------------------------------------------------------


def test_fltac_with_one_cluster_is_fedit() -> None:
    truth = federation([0], [1], [0], [2])
    tac, it = fltac(tasks=1, features="b_factors", lr=1.0, steps=1), fedit(lr=1.0, steps=1)
    one, other = new_hub(2), new_hub(1)
    for number in range(1, 5):
        now = Round(number, 0)
        world = World(truth)
        mine, theirs = world.uploads(one, number), world.uploads(other, number)
        assert tree.equal(mine.delta, theirs.delta)
        weight = torch.tensor([5.0, 1.0, 2.0, 9.0], dtype=torch.float64)
        one, _ = server_step(tac, SPEC, one, replace(mine, weight=weight), now)
        other, _ = server_step(it, SPEC, other, replace(theirs, weight=weight), now)
        row, single = tree.row(one.bank, 1), tree.row(other.bank, 0)
        # Round 1 moves everybody from row 0 to row 1, which are equal: the same bits in all rounds.
        assert tree.equal(row, single)


def test_separated_tasks_are_fedavg_per_task() -> None:
    truth = federation([0, 1, 2], [2, 0], [1, 2], [0, 1], [0])
    world, hub = World(truth), new_hub(4)
    part = fltac(tasks=3, features="b_factors", lr=1.0, steps=1)
    for number in range(1, 4):
        updates = replace(world.uploads(hub, number), weight=torch.tensor([WEIGHTS[s] for s in truth], dtype=torch.float64))
        hub, _ = server_step(part, SPEC, hub, updates, Round(number, 0))
        for slot, task in truth.items():
            expected = weighted(updates, [truth[other] == task for other in updates.origin])
            assert tree.max_difference(tree.row(hub.bank, hub.row_of(slot)), expected) < 1e-14


def test_a_row_becomes_the_mean_of_its_members_wherever_they_started() -> None:
    # Trap 3: with wrong or mixed starts, delta must be expressed from the new row; the row is then the mean of the uploads.
    truth = federation([0, 1], [1, 0], [0])
    rows = [state(50 + row) for row in range(3)]
    hub = Hub(tree.stack(rows), {Slot(0, 0): 1, Slot(0, 1): 2, Slot(1, 0): 1, Slot(1, 1): 2})
    updates = World(truth).uploads(hub, 1, progress=dict.fromkeys(truth, 1.0))
    after, metrics = server_step(fltac(tasks=2, features="b_factors", lr=1.0, steps=1), SPEC, hub, updates, NOW)
    assert metrics["moved"] >= 3  # Slot(2, 0) from row 0, and one client's two slots
    for slot, task in truth.items():
        expected = weighted(updates, [truth[other] == task for other in updates.origin])
        assert tree.max_difference(tree.row(after.bank, after.row_of(slot)), expected) < 1e-14


def test_rebase_leaves_a_delta_whose_row_stays_bit_for_bit() -> None:
    hub = Hub({key: x.float() for key, x in tree.stack([state(1), state(2)]).items()}, {Slot(0, 0): 1, Slot(1, 0): 1})
    deltas = {Slot(client, 0): {key: x.float() * 1e-7 for key, x in state(9 + client).items()} for client in range(2)}
    updates = make_updates(deltas, hub)
    stays = rebase(updates, hub, torch.tensor([1, 1]))
    assert tree.equal(stays, updates.delta)
    moved = rebase(updates, hub, torch.tensor([0, 1]))
    assert tree.equal(tree.row(moved, 1), tree.row(updates.delta, 1))
    whole = {key: (x + tree.row(hub.bank, 0)[key].double()) for key, x in tree.row(moved, 0).items()}
    sent = {key: x.double() + hub.bank[key][1].double() for key, x in tree.row(updates.delta, 0).items()}
    assert tree.max_difference(whole, sent) < 1e-6


def test_arrival_order_cannot_matter() -> None:
    # Trap 9: 10 float32 uploads summed on arrival gave 50 different results for 50 orders.
    hub = Hub({key: x.float()[None] for key, x in state(0).items()})
    replies = [(Slot(c, 0), {key: x.float() for key, x in state(20 + c).items()}, WEIGHTS[Slot(c % 6, 0)]) for c in range(10)]
    jobs = [Job(slot, 0, NOW) for slot, _, _ in replies]
    results = []
    for turn in range(20):
        random.Random(turn).shuffle(replies)
        random.Random(turn + 1).shuffle(jobs)
        updates = collect(replies, jobs, hub, SPEC.rank)
        assert updates.origin == tuple(sorted(updates.origin))
        results.append(server_step(fedit(lr=1.0, steps=1), SPEC, hub, updates, NOW)[0])
    assert all(tree.equal(results[0].bank, other.bank) for other in results)


def test_patches_stay_with_their_rows() -> None:
    # Trap 8: a patch is low-rank and per row; a step without one leaves it alone, clustering or not.
    patch = {"enc.0.q/patch_A": torch.randn(4, 2, 5), "enc.0.q/patch_B": torch.randn(4, 4, 2)}
    truth = federation([0, 1, 2], [2, 0, 1])
    hub = replace(new_hub(4), patch=patch)
    after, _ = server_step(fltac(tasks=3, features="b_factors", lr=1.0, steps=1), SPEC, hub, World(truth).uploads(hub, 1), NOW)
    assert tree.equal(after.patch, patch)


def test_nothing_shared_changes_no_adapter() -> None:
    hub = new_hub(1)
    updates = make_updates({Slot(0, 0): {}, Slot(1, 0): {}})
    after, _ = server_step(local_only(lr=1.0, steps=1), SPEC, hub, updates, NOW)
    assert tree.equal(after.bank, hub.bank)
    assert after.table == {Slot(0, 0): 0, Slot(1, 0): 0}
    assert after.step == 1


def test_collect_takes_the_start_from_the_job_not_from_the_table() -> None:
    hub = Hub(tree.stack([state(1), state(2), state(3)]), {Slot(0, 0): 1})
    got = collect([(Slot(0, 0), state(9), 4.0)], [Job(Slot(0, 0), 2, NOW)], hub, 2)
    assert tree.equal(tree.row(got.start, 0), state(3))
    assert (got.weight.tolist(), got.rank.tolist(), got.staleness.tolist()) == ([4.0], [2], [0.0])
    empty = collect([(Slot(0, 0), {}, 1.0)], [Job(Slot(0, 0), 0, NOW)], hub, 2)
    assert empty.start == {}


# -- programs ------------------------------------------------------------------------------------------------------------


def test_init_makes_equal_rows_of_their_own() -> None:
    hub = compose(fltac(tasks=3, features="b_factors", lr=1.0, steps=1), SPEC).init(state(4))
    assert tree.length(hub.bank) == 4
    assert all(tree.equal(tree.row(hub.bank, row), state(4)) for row in range(4))
    assert (hub.table, hub.step) == ({}, 0)


def test_plan_asks_every_slot_of_the_cohort_in_order() -> None:
    program = compose(fltac(tasks=3, features="b_factors", lr=1.0, steps=1, first_effort=2.5), SPEC)
    hub = Hub(new_hub(4).bank, {Slot(2, 0): 3})
    jobs = program.plan(hub, {2: 2, 0: 1}, Round(1, 0))
    assert [(job.slot, job.row, job.effort) for job in jobs] == [(Slot(0, 0), 0, 2.5), (Slot(2, 0), 3, 1.0), (Slot(2, 1), 0, 2.5)]
    assert program.plan(hub, {2: 2, 0: 1}, Round(7, 0)) == [replace(job, round=Round(7, 0)) for job in jobs]  # whenever they come
    few = compose(fedit(lr=1.0, steps=1, participation=0.3), SPEC)
    now = Round(5, 1)
    assert [job.slot.client for job in few.plan(hub, dict.fromkeys(range(10), 1), now)] == sample.fraction(0.3)(range(10), now)


@pytest.mark.parametrize(
    ("policy", "trains", "travels"),
    [("federated", True, True), ("per-task", True, True), ("private", True, False), ("frozen", False, False)],
)
def test_head_policies(policy: str, trains: bool, travels: bool) -> None:
    client = compose(fedit(lr=1.0, steps=1), replace(SPEC, head=policy)).client
    assert (HEAD in client.train(NOW)) is trains
    assert (HEAD in client.share(NOW)) is travels
    assert set(SPEC.names("lora_A", "lora_B")) <= set(client.share(NOW))


def test_only_what_trains_can_travel() -> None:
    part = replace(fedit(lr=1.0, steps=1), train=pick.roles(("lora_B",)))
    client = compose(part, SPEC).client
    assert client.share(NOW) == client.train(NOW) == SPEC.names("lora_B")


# -- what is refused -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class masking(Plain):
    """A wire part that shows the server only sums."""

    hides: ClassVar[str] = "masking"


@dataclass(frozen=True)
class curious(reduce.mean):
    """A reduction that wants to look at every update."""

    sees: ClassVar[str] = "each"


@dataclass(frozen=True)
class summing:
    """A reduction from sums that is no mean."""

    sees: ClassVar[str] = "sum"
    unweighted: ClassVar[bool] = True


@dataclass(frozen=True)
class peeking(Plain):
    """A wire part whose server half looks at every update."""

    sees: ClassVar[str] = "each"


NOISY_SUMS = wire.chain((wire.clip(1.0), wire.central_noise(1.0, clip=1.0), wire.masked()))


def noisy(**changes: object) -> Method:
    parts = wire.chain((wire.clip(1.0), wire.central_noise(1.0, clip=1.0)))
    base = Method("m", LOCAL, wire=parts, reduce=reduce.mean("uniform"))
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method("m", LOCAL, wire=wire.chain((masking(),)), assign=assign.kmeans(2)), "kmeans must see content.*masking"),
        (Method("m", LOCAL, wire=wire.chain((wire.clip(1.0), masking())), reduce=curious()), "curious must see each"),
        (Method("m", LOCAL, wire=wire.chain((peeking(), masking()))), "peeking must see each.*masking"),
        (Method("m", LOCAL, wire=wire.chain((wire.masked(),)), reduce=summing()), "(?s)summing is no weighted mean.*reduce = mean"),  # type: ignore[arg-type]
        (Method("m", LOCAL, assign=assign.chosen(2)), "clients choose rows, and do not add up"),
        (noisy(wire=wire.chain((wire.central_noise(1.0, clip=1.0),))), "needs a clip to 1.0 before"),
        (noisy(wire=wire.chain((wire.clip(2.0), wire.central_noise(1.0, clip=1.0)))), "needs a clip to 1.0 before"),
        (noisy(wire=wire.chain((wire.central_noise(1.0, clip=1.0), wire.clip(1.0)))), "needs a clip to 1.0 before"),
        (noisy(wire=wire.chain((wire.clip(1.0), wire.clip(3.0), wire.central_noise(1.0, clip=1.0)))), "needs a clip to 1.0"),
        (noisy(reduce=reduce.mean("samples")), "unweighted mean"),
        (noisy(assign=assign.kmeans(2)), "does not protect what kmeans reads"),
        (noisy(assign=assign.chosen(2), wire=NOISY_SUMS), "does not protect what chosen reads"),
        (noisy(slots="task"), "one update per client"),
        (Method("m", LOCAL, first_effort=0.0), "first_effort must be positive"),
        (Method("m", LOCAL, first_effort=float("nan")), "first_effort must be positive"),
    ],
)
def test_impossible_mixes_are_refused_in_one_sentence(method: Method, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        compose(method, SPEC)


def test_possible_mixes_are_not() -> None:
    compose(noisy(), SPEC)
    compose(noisy(wire=NOISY_SUMS), SPEC)
    compose(Method("m", LOCAL, wire=wire.chain((masking(),))), SPEC)
    compose(Method("m", LOCAL, assign=assign.kmeans(2)), SPEC)


def test_per_task_heads_would_tell_the_label() -> None:
    # Trap 7.
    with pytest.raises(CompositionError, match="which head changed is its label"):
        compose(fltac(tasks=2, features="b_factors", lr=1.0, steps=1), replace(SPEC, head="per-task"))


def test_a_per_task_head_has_fewer_contributors_than_the_noise_is_calibrated_for() -> None:
    with pytest.raises(CompositionError, match="too small for per-task heads"):
        compose(noisy(), replace(SPEC, head="per-task"))


def test_zeros_in_the_place_of_a_clipped_update_move_the_mean_by_at_most_clip_over_n() -> None:
    # What the noise is calibrated for; another update in its place moves it by up to twice that.
    clip, n, worst = wire.clip(1.5), 4, {"zeros": 0.0, "another": 0.0}
    for seed in range(50):
        sent = [clip.send(state(n * seed + i, 3.0), None) for i in range(n)]
        mean = tree.flatten(reduced(sent))
        for name, other in (("zeros", tree.zeros_like(sent[0])), ("another", tree.scale(sent[0], -1.0))):
            worst[name] = max(worst[name], float((tree.flatten(reduced([other, *sent[1:]])) - mean).norm()))
    assert worst["zeros"] == pytest.approx(1.5 / n)
    assert worst["another"] == pytest.approx(2 * 1.5 / n)


def reduced(sent: list[State]) -> State:
    """Their unweighted mean."""
    updates = make_updates({Slot(client, 0): delta for client, delta in enumerate(sent)})
    found, _ = reduce.mean("uniform")(updates, torch.zeros(len(sent), dtype=torch.long), 1)
    return tree.row(found, 0)


def test_per_task_heads_are_averaged_by_looking_who_changed_them() -> None:
    hidden = replace(fedit(lr=1.0, steps=1), wire=wire.chain((wire.masked(),)))
    compose(hidden, SPEC)
    with pytest.raises(CompositionError, match="who changed which head, but secure_aggregation shows only sums"):
        compose(hidden, replace(SPEC, head="per-task"))


def test_there_is_no_step_without_sums() -> None:
    program = compose(replace(fedit(lr=1.0, steps=1), wire=wire.chain((wire.masked(),))), SPEC)
    hub = program.init({leaf.name: torch.zeros(leaf.shape) for leaf in SPEC.leaves})
    with pytest.raises(ValueError, match="without sums"):
        program.fold(hub, Total(None, (), (), {}, {}))


def test_features_that_the_adapter_does_not_have() -> None:
    head = replace(SPEC, family="head", leaves=SPEC.leaves[-1:])
    with pytest.raises(CompositionError, match="nothing but a head"):
        compose(fltac(tasks=2, features="b_factors", lr=1.0, steps=1, adapter="head"), head)
    compose(fltac(tasks=2, features="b_factors", lr=1.0, steps=1, adapter="head", head_features=True), head)


# -- builders ------------------------------------------------------------------------------------------------------------


def test_a_method_is_a_value_that_prints_as_it_is_written() -> None:
    one = fltac(tasks=5, features="b_factors", lr=0.1, steps=3, weighting="uniform", constraint="none", head_features=True)
    assert one == fltac(tasks=5, features="b_factors", lr=0.1, steps=3, weighting="uniform", constraint="none", head_features=True)
    assert "assign=kmeans(k=5, features='b_factors', constraint='none', head=True, restarts=50, estimate=False)" in repr(one)
    assert fltac(tasks=5, lr=0.1, steps=3, participation=0.5).sample == sample.fraction(0.5)


def test_a_per_task_head_is_averaged_over_the_clients_that_have_the_task() -> None:
    """Client 1 lacks task 1, so head 1 moves by client 0's change in full; head 0 by the weighted mean of both."""
    leaf = Leaf("c/head.weight", (2, 3), "head", 0, None, torch.float64)
    spec = Spec("head", (leaf,), head="per-task")
    program = compose(fedit(lr=0.1, steps=1), spec)
    hub = program.init({leaf.name: torch.zeros(2, 3, dtype=torch.float64)})
    both, one = torch.tensor([[1.0] * 3, [4.0] * 3]), torch.tensor([[5.0] * 3, [0.0] * 3])
    deltas = {Slot(0, 0): {leaf.name: both.double()}, Slot(1, 0): {leaf.name: one.double()}}
    after, _ = program.step(hub, make_updates(deltas, hub, {Slot(0, 0): 1.0, Slot(1, 0): 3.0}), Round(1, 0))
    assert after.bank[leaf.name][0].tolist() == [[4.0] * 3, [4.0] * 3]


def test_where_the_adapters_live() -> None:
    options = {"lr": 0.1, "steps": 3}
    assert [m(**options).slots for m in (fedit, local_only, head_only)] == ["client", "task", "client"]  # type: ignore[operator]
    assert (centralised_lora(**options).slots, centralised_lora(mixed=True, **options).slots) == ("pooled-task", "pooled")  # type: ignore[arg-type]
    full = centralised_full(**options)  # type: ignore[arg-type]
    assert (full.adapter, full.local.memory, full.local.per) == ("full", "persist", "task")
    assert head_only(**options).adapter == "head"  # type: ignore[arg-type]
    assert local_only(**options).share == pick.nothing()  # type: ignore[arg-type]
