"""The small parts: which leaves, which clients, and the server's step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedquilt import apply, pick, sample, tree
from fedquilt.errors import ConfigError
from fedquilt.types import Leaf, Round, Spec

SPEC = Spec(
    "lora",
    (
        Leaf("q/lora_B", (3, 1), "lora_B", 0, 1),
        Leaf("q/lora_A", (1, 2), "lora_A", 0, 0),
        Leaf("classifier/head.bias", (2,), "head", 1),
    ),
    rank=1,
)


# -- pick ----------------------------------------------------------------------------------------------------------------


def test_everything_nothing_and_roles() -> None:
    now = Round(1, 0)
    assert pick.everything()(SPEC, now) == ("classifier/head.bias", "q/lora_A", "q/lora_B")
    assert pick.nothing()(SPEC, now) == ()
    assert pick.roles(("lora_B",))(SPEC, now) == ("q/lora_B",)
    assert pick.roles(("lora_A", "head"))(SPEC, now) == ("classifier/head.bias", "q/lora_A")
    assert pick.roles(("prompt",))(SPEC, now) == ()


def test_alternate_trains_b_in_the_first_round_and_the_head_always() -> None:
    # Trap 12: with B = 0 the first gradient of A is exactly zero (proved on a model in test_models).
    names = [pick.alternate()(SPEC, Round(number, 0)) for number in (1, 2, 3)]
    assert names == [
        ("classifier/head.bias", "q/lora_B"),
        ("classifier/head.bias", "q/lora_A"),
        ("classifier/head.bias", "q/lora_B"),
    ]


def spec_of(*lengths: int) -> Spec:
    leaves = [Leaf(f"m{n}/down.core.{j}", (1,), "core", 0, core=(j, n)) for n in lengths for j in range(n)]
    return Spec("tt", (*leaves, Leaf("m/down.bias", (1,), "bias", 0), Leaf("c/head.bias", (1,), "head", 0)))


def places(part: pick.cores, length: int, rounds: int) -> list[set[int]]:
    names = [part(spec_of(length), Round(number, 7)) for number in range(1, rounds + 1)]
    return [{int(name.rpartition(".")[2]) for name in found if ".core." in name} for found in names]


def test_the_papers_cores_are_the_ends_and_one_between() -> None:
    assert places(pick.cores(), 5, 4) == [{0, 1, 4}, {0, 2, 4}, {0, 3, 4}, {0, 1, 4}]
    assert places(pick.cores(order="fixed"), 5, 2) == [{0, 2, 4}] * 2
    assert places(pick.cores(), 3, 2) == [{0, 1, 2}] * 2
    drawn = places(pick.cores(order="random"), 6, 60)
    assert all({0, 5} < found and len(found) == 3 for found in drawn)
    assert set.union(*drawn) == set(range(6))
    assert drawn == places(pick.cores(order="random"), 6, 60)


def test_a_single_core_begins_with_the_last() -> None:
    assert places(pick.cores("single"), 4, 5) == [{3}, {2}, {1}, {0}, {3}]
    assert places(pick.cores("single", "fixed"), 4, 2) == [{3}] * 2
    drawn = places(pick.cores("single", "random"), 4, 40)
    assert drawn[0] == {3}
    assert set.union(*drawn) == set(range(4))


def test_every_length_has_its_own_turn_and_others_train_unless_told() -> None:
    found = pick.cores()(spec_of(4, 5), Round(3, 0))
    assert found == ("c/head.bias", "m/down.bias", "m4/down.core.0", "m4/down.core.1", "m4/down.core.3", "m5/down.core.0",
                     "m5/down.core.3", "m5/down.core.4")  # fmt: skip
    assert all(".core." in name for name in pick.cores(others=False)(spec_of(4), Round(1, 0)))


# -- sample --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "clients", "wanted"),
    [(1.0, 7, 7), (0.5, 5, 3), (0.5, 3, 2), (0.1, 10, 1), (0.01, 10, 1), (0.3, 10, 3), (0.25, 10, 3)],
)
def test_fraction_takes_the_rounded_share_and_at_least_one(share: float, clients: int, wanted: int) -> None:
    assert len(sample.fraction(share)(range(clients), Round(1, 0))) == wanted


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30, unique=True), st.floats(0.01, 1), st.integers(1, 50), st.randoms())
def test_a_cohort_is_sorted_unique_and_independent_of_the_order_of_clients(
    clients: list[int], share: float, number: int, chance: object
) -> None:
    now = Round(number, 3)
    chosen = sample.fraction(share)(clients, now)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(clients)
    shuffled = list(clients)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sample.fraction(share)(shuffled, now) == chosen
    assert sample.everyone()(shuffled, now) == sorted(clients)


def test_every_client_is_drawn_equally_often() -> None:
    counts = torch.zeros(10)
    for number in range(2000):
        counts[sample.fraction(0.3)(range(10), Round(number, 5))] += 1
    # Binomial(2000, 0.3): standard deviation 20.5
    assert (counts - 600).abs().max() < 5 * 20.5


def test_other_rounds_and_seeds_give_other_cohorts() -> None:
    part = sample.fraction(0.5)
    cohorts = {tuple(part(range(40), Round(number, seed))) for number in range(5) for seed in range(5)}
    assert len(cohorts) == 25
    assert part(range(40), Round(2, 1)) == part(range(40), Round(2, 1))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="participation must be in"):
        sample.fraction(share)


# -- apply ---------------------------------------------------------------------------------------------------------------


def bank(seed: int = 0, k: int = 4) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(k, 2, 3, generator=noise), "b": torch.randn(k, generator=noise)}


TOUCHED = torch.tensor([False, True, True, False])


@pytest.mark.parametrize("lr", [1.0, 0.25])
@pytest.mark.parametrize("part", [apply.add, apply.momentum])
def test_untouched_rows_keep_their_bits_even_when_their_delta_is_garbage(part: type, lr: float) -> None:
    before, delta = bank(), bank(1)
    delta = {key: torch.where(TOUCHED.view(-1, *[1] * (d.dim() - 1)), d, torch.nan) for key, d in delta.items()}
    after, memory = part(lr=lr)(before, delta, TOUCHED, {})
    for row in (0, 3):
        assert tree.equal(tree.row(after, row), tree.row(before, row))
    for row in (1, 2):
        expected = tree.add(tree.row(before, row), tree.scale(tree.row(delta, row), lr))
        assert tree.max_difference(tree.row(after, row), expected) < 1e-6
    assert all(bool(torch.isfinite(m).all()) for m in memory.values())


def test_leaves_that_did_not_travel_stay() -> None:
    before = bank()
    after, _ = apply.add()(before, {"a": torch.ones(4, 2, 3)}, torch.ones(4, dtype=torch.bool), {})
    assert torch.equal(after["b"], before["b"])
    assert torch.equal(after["a"], before["a"] + 1)
    assert list(after) == ["a", "b"]
    nothing, _ = apply.add()(before, {}, TOUCHED, {})
    assert tree.equal(nothing, before)


def test_server_momentum_equals_torch_sgd_on_the_negative_update() -> None:
    # FedAvgM is SGD with momentum on the pseudo-gradient -delta.
    start = {key: x.double() for key, x in bank().items()}
    everywhere = torch.ones(4, dtype=torch.bool)
    parameters = {key: x.clone().requires_grad_() for key, x in start.items()}
    reference = torch.optim.SGD(parameters.values(), lr=0.3, momentum=0.8)
    part = apply.momentum(beta=0.8, lr=0.3)
    x: object = start
    memory: object = {}
    for step in range(6):
        delta = {key: d.double() for key, d in bank(step + 10).items()}
        x, memory = part(x, delta, everywhere, memory)  # type: ignore[arg-type]
        for key, parameter in parameters.items():
            parameter.grad = -delta[key]
        reference.step()
    assert tree.max_difference(x, {key: p.detach() for key, p in parameters.items()}) < 1e-14  # type: ignore[arg-type]


def test_moments_belong_to_rows_and_other_memory_survives() -> None:
    # A row that sat out keeps its moments: they must neither decay nor mix with another row's.
    part, delta = apply.momentum(beta=0.5), {"b": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    x, memory = part({"b": torch.zeros(4)}, delta, torch.ones(4, dtype=torch.bool), {"other": torch.ones(1)})
    x, memory = part(x, delta, TOUCHED, memory)
    assert memory["momentum/b"].tolist() == [1.0, 3.0, 4.5, 4.0]
    assert x["b"].tolist() == [1.0, 5.0, 7.5, 4.0]
    assert memory["other"].tolist() == [1.0]


def test_without_momentum_it_is_add_bit_for_bit() -> None:
    delta = bank(2)
    plain, none = apply.momentum(beta=0.0, lr=0.7)(bank(), delta, TOUCHED, {})
    assert tree.equal(plain, apply.add(lr=0.7)(bank(), delta, TOUCHED, {})[0])
    assert none == {}


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_an_impossible_momentum_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match="server momentum"):
        apply.momentum(beta=beta)


def test_parts_print_as_they_are_written() -> None:
    assert repr(apply.momentum(0.9)) == "momentum(beta=0.9, lr=1.0)"
    assert repr(sample.fraction(0.5)) == "fraction(share=0.5)"
    assert repr(pick.nothing()) == "nothing()"
