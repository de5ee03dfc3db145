"""Weighted means inside groups, against exact fractions and numpy."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedquilt import reduce, tree
from fedquilt.reduce.mean import Weighting
from fedquilt.types import Slot, Updates


def make(delta: dict[str, Tensor], weight: list[float]) -> Updates:
    n = len(weight)
    return Updates(
        delta,
        tree.zeros_like(delta),
        torch.tensor(weight, dtype=torch.float64),
        tuple(Slot(client, 0) for client in range(n)),
        torch.zeros(n),
        torch.zeros(n),
    )


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from(["samples", "uniform"]))
def test_equals_numpy_average_per_group(n: int, rows: int, seed: int, weighting: str) -> None:
    stream = torch.Generator().manual_seed(seed)
    delta = {"a": torch.randn(n, 2, 3, generator=stream).double(), "s": torch.randn(n, generator=stream).double()}
    weight = torch.randint(1, 5000, (n,), generator=stream).double().tolist()
    group = torch.randint(rows, (n,), generator=stream)
    out, touched = reduce.mean(weighting)(make(delta, weight), group, rows)  # type: ignore[arg-type]
    for row in range(rows):
        mine = (group == row).numpy()
        assert bool(touched[row]) == mine.any()
        for key, value in delta.items():
            if mine.any():
                shares = np.asarray(weight)[mine] if weighting == "samples" else None
                expected = np.average(value.numpy()[mine], axis=0, weights=shares)
                np.testing.assert_allclose(out[key][row].numpy(), expected, rtol=1e-12, atol=1e-15)
            else:
                assert not out[key][row].any()


def test_sums_are_float64_whatever_the_dtype_of_the_wire() -> None:
    # In float32 the small one would vanish: 1e8 + 1 - 1e8 = 0. The exact mean is 1/3.
    delta = {"a": torch.tensor([[1e8], [1.0], [-1e8]])}
    out, _ = reduce.mean("uniform")(make(delta, [1, 1, 1]), torch.zeros(3, dtype=torch.long), 1)
    assert out["a"].dtype == torch.float32
    assert out["a"].item() == np.float32(1 / 3)


@given(st.lists(st.tuples(st.integers(-(2**20), 2**20), st.integers(1, 1000)), min_size=1, max_size=20))
def test_the_cast_result_is_the_exact_one(pairs: list[tuple[int, int]]) -> None:
    values, weights = zip(*pairs, strict=True)
    delta = {"a": torch.tensor(values, dtype=torch.float32)[:, None]}
    out, _ = reduce.mean()(make(delta, [float(w) for w in weights]), torch.zeros(len(pairs), dtype=torch.long), 1)
    exact = Fraction(sum(v * w for v, w in pairs), sum(weights))
    assert out["a"].item() == np.float32(float(exact))


@given(st.integers(1, 8), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_the_scale_of_the_weights_does_not_matter_and_the_mean_stays_in_the_hull(n: int, seed: int, factor: float) -> None:
    stream = torch.Generator().manual_seed(seed)
    delta = {"a": torch.randn(n, 5, generator=stream).double()}
    weight = torch.rand(n, generator=stream).double() + 1e-3
    group = torch.zeros(n, dtype=torch.long)
    one, _ = reduce.mean()(make(delta, weight.tolist()), group, 1)
    other, _ = reduce.mean()(make(delta, (weight * factor).tolist()), group, 1)
    assert tree.max_difference(one, other) < 1e-14
    assert (one["a"][0] <= delta["a"].max(0).values + 1e-14).all()
    assert (one["a"][0] >= delta["a"].min(0).values - 1e-14).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize(("n", "d"), [(3, 5), (50, 40_001), (70, 8192)])
def test_blocks_and_threads_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, n: int, d: int, weighting: Weighting, threads: int
) -> None:
    """Of float64 updates, for casts hide the order of a sum."""
    stream = torch.Generator().manual_seed(n)
    delta = torch.randn(n, d, generator=stream).double() * 10 ** torch.randn(n, 1, generator=stream)
    weight, group = torch.rand(n, generator=stream).double(), torch.randint(4, (n,), generator=stream)
    share = weight if weighting == "samples" else torch.ones_like(weight)
    sums, mass = torch.zeros(4, d, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for i in range(n):  # one contributor after the other
        sums[group[i]] += share[i] * delta[i]
        mass[group[i]] += share[i]
    expected = torch.where(mass > 0, sums.t() / mass, 0.0).t()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for numbers, columns in ((65_536, 4096), (1, 100), (7_000, 999), (1_000_000, 1_000_000)):
            monkeypatch.setattr(sys.modules["fedquilt.reduce.mean"], "NUMBERS", numbers)
            monkeypatch.setattr(sys.modules["fedquilt.reduce.mean"], "COLUMNS", columns)
            out, _ = reduce.mean(weighting)(make({"a": delta, "b": delta[:, :3], "c": delta[:, 0]}, weight.tolist()), group, 4)
            assert torch.equal(out["a"], expected)
            assert torch.equal(out["b"], expected[:, :3])
            assert torch.equal(out["c"], expected[:, 0])
    finally:
        torch.set_num_threads(before)


def test_the_mean_of_equal_updates_is_that_update_bit_for_bit() -> None:
    value = torch.randn(7, generator=torch.Generator().manual_seed(0))
    delta = {"a": value.expand(5, 7).clone()}
    out, _ = reduce.mean()(make(delta, [3.0, 11.0, 7.0, 1.0, 19.0]), torch.zeros(5, dtype=torch.long), 1)
    assert torch.equal(out["a"][0], value)


# -- per-task heads ------------------------------------------------------------------------------------------------------


def per_task() -> dict[str, Tensor]:
    """Two contributors, two heads: client 0 trained head 0, client 1 both."""
    delta = torch.zeros(2, 2, 3, 2)
    delta[0, 0], delta[1, 0], delta[1, 1] = 4.0, 1.0, 8.0
    bias = torch.zeros(2, 2, 3)
    bias[0, 0], bias[1, 0], bias[1, 1] = 4.0, 1.0, 8.0
    return {"c/head.weight": delta, "c/head.bias": bias, "q/lora_A": torch.tensor([[2.0], [6.0]])}


def test_a_head_is_averaged_over_those_who_trained_it() -> None:
    part = reduce.mean(trained_only=("c/head.weight", "c/head.bias"))
    out, touched = part(make(per_task(), [1.0, 3.0]), torch.zeros(2, dtype=torch.long), 2)
    for key in ("c/head.weight", "c/head.bias"):
        assert torch.equal(out[key][0, 0], torch.full_like(out[key][0, 0], 1.75))  # (1*4 + 3*1) / 4
        assert torch.equal(out[key][0, 1], torch.full_like(out[key][0, 1], 8.0))  # client 0 never saw task 1
    assert out["q/lora_A"][0].item() == 5.0
    assert touched.tolist() == [True, False]
    assert not any(x[1].any() for x in out.values())


def test_without_the_option_heads_are_diluted() -> None:
    out, _ = reduce.mean()(make(per_task(), [1.0, 3.0]), torch.zeros(2, dtype=torch.long), 1)
    assert torch.equal(out["c/head.bias"][0, 1], torch.full((3,), 6.0))


def test_a_head_of_two_axes_and_one_that_nobody_trained() -> None:
    delta = {"temperature": torch.tensor([[1.0, 0.0], [3.0, 0.0]])}  # [n, heads]
    out, _ = reduce.mean(trained_only=("temperature",))(make(delta, [1.0, 1.0]), torch.zeros(2, dtype=torch.long), 1)
    assert out["temperature"].tolist() == [[2.0, 0.0]]


def test_what_a_mean_declares() -> None:
    assert reduce.mean("uniform").unweighted
    assert not reduce.mean().unweighted
    assert reduce.mean.sees == "sum"
    with pytest.raises(TypeError):  # trap 4: a constant of the class, not a setting
        reduce.mean(sees="content")  # type: ignore[call-arg]


def test_nothing_shared_reduces_to_nothing() -> None:
    out, touched = reduce.mean()(make({}, [1.0, 2.0]), torch.tensor([1, 1]), 3)
    assert out == {}
    assert touched.tolist() == [False, True, False]
