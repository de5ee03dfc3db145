"""Clipping, central noise, and the onion that composes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedquilt import tree, wire
from fedquilt.errors import ConfigError
from fedquilt.types import Job, Round, Slot, Updates
from fedquilt.wire.chain import Plain

JOB = Job(Slot(0, 0), 0, Round(1, 0))


def delta(seed: int, size: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    x = {"a": torch.randn(3, 4, generator=stream, dtype=torch.float64), "b": torch.randn(5, generator=stream, dtype=torch.float64)}
    return {key: (value * size).to(dtype) for key, value in x.items()}


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3), st.sampled_from([torch.float32, torch.float64]))
def test_the_norm_after_clipping_is_the_smaller_of_norm_and_bound(seed: int, size: float, to: float, dtype: torch.dtype) -> None:
    before = delta(seed, size, dtype)
    after = wire.clip(to).send(before, JOB)
    norm = math.sqrt(sum(float(x.double().square().sum()) for x in before.values()))
    clipped = math.sqrt(sum(float(x.double().square().sum()) for x in after.values()))
    assert clipped == pytest.approx(min(norm, to), rel=1e-6)
    assert clipped <= to * (1 + 1e-6)
    assert {key: (x.dtype, x.shape) for key, x in after.items()} == {key: (x.dtype, x.shape) for key, x in before.items()}
    if norm <= to:
        assert tree.equal(after, before)
    else:
        assert tree.max_difference(after, tree.scale(before, to / norm)) <= 1e-6 * to


def test_a_zero_update_stays_zero() -> None:
    zero = {"a": torch.zeros(3)}
    assert tree.equal(wire.clip(1.0).send(zero, JOB), zero)


@pytest.mark.parametrize("to", [0.0, -1.0, float("nan")])
def test_an_impossible_bound_is_refused(to: float) -> None:
    with pytest.raises(ConfigError, match="clipping norm"):
        wire.clip(to)


def test_noise_has_the_promised_deviation_and_skips_untouched_rows() -> None:
    counts = torch.tensor([1, 4, 0])
    zeros = {"a": torch.zeros(3, 200, 200), "b": torch.zeros(3, 100)}
    noisy = wire.central_noise(multiplier=2.0, clip=3.0).finish(zeros, counts > 0, counts)
    assert not noisy["a"][2].any()
    assert not noisy["b"][2].any()
    for row, std in ((0, 6.0), (1, 1.5)):
        sample = noisy["a"][row]
        # 40,000 draws: the standard error of a deviation is std / sqrt(80,000)
        assert sample.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(80_000))
        assert sample.mean().item() == pytest.approx(0.0, abs=5 * std / 200)


def test_noise_is_secret_not_derived_from_any_seed() -> None:
    # Trap 6: public randomness is equal on every engine; this must not be.
    part, counts = wire.central_noise(1.0, 1.0), torch.tensor([1])
    torch.manual_seed(0)
    one = part.finish({"a": torch.zeros(1, 50)}, counts > 0, counts)
    torch.manual_seed(0)
    two = part.finish({"a": torch.zeros(1, 50)}, counts > 0, counts)
    assert not torch.equal(one["a"], two["a"])


@dataclass(frozen=True)
class affine(Plain):
    """x -> factor x + shift on the client; undone on the server. Does not commute with another one: order shows."""

    factor: float
    shift: float

    def send(self, delta: dict[str, Tensor], job: Job | None) -> dict[str, Tensor]:  # type: ignore[override]
        return {key: self.factor * x + self.shift for key, x in delta.items()}

    def receive(self, updates: Updates) -> Updates:
        return updates.with_delta({key: (x - self.shift) / self.factor for key, x in updates.delta.items()})

    def finish(self, delta: dict[str, Tensor], touched: Tensor, counts: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {key: x * self.factor + counts.sum() * self.shift for key, x in delta.items()}


def test_a_chain_sends_in_order_and_receives_in_reverse() -> None:
    onion = wire.chain((affine(2.0, 1.0), affine(4.0, 8.0)))
    sent = onion.send({"a": torch.tensor([3.0])}, JOB)
    assert sent["a"].tolist() == [(3 * 2 + 1) * 4 + 8]
    updates = Updates(
        tree.stack([sent]),
        {"a": torch.zeros(1, 1)},
        torch.ones(1, dtype=torch.float64),
        (Slot(0, 0),),
        torch.zeros(1),
        torch.zeros(1),
    )
    assert onion.receive(updates).delta["a"].tolist() == [[3.0]]
    counts = torch.tensor([1])
    assert onion.finish({"a": torch.ones(1, 1)}, counts > 0, counts)["a"].tolist() == [[(4 + 8) * 2 + 1]]


def test_an_empty_chain_changes_nothing_and_parts_default_to_nothing() -> None:
    x, counts = {"a": torch.ones(1, 2)}, torch.tensor([1])
    updates = Updates({}, {}, torch.ones(1, dtype=torch.float64), (Slot(0, 0),), torch.zeros(1), torch.zeros(1))
    for part in (wire.chain(), wire.chain((Plain(),)), Plain()):
        assert part.send(x, JOB) is x
        assert part.receive(updates) is updates
        assert part.finish(x, counts > 0, counts) is x
    assert wire.clip(1.0).finish(x, counts > 0, counts) is x
    assert wire.central_noise(1.0, 1.0).send(x, JOB) is x


def test_what_a_part_sees_is_a_constant_of_its_class() -> None:
    # Trap 4: a user must not be able to talk a part past the check of composition.
    for part in (wire.clip, wire.central_noise, wire.chain):
        assert part.sees == "sum"
        assert "sees" not in part.__dataclass_fields__
