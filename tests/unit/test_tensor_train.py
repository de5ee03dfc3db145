"""Tensor trains: shapes, three ways to multiply with equal results, their prices, gradients, and what averaging cores costs."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedquilt.adapters.tt.maps import Way, cheapest, contract, costs, dense, halves, multiply, spread
from fedquilt.adapters.tt.shapes import LARGEST, PUBLISHED, Shape, factors, shape_of, split

WAYS: tuple[Way, ...] = get_args(Way)
TABLE = sorted({pair for side in PUBLISHED for pair in (side, side[::-1])})


def train_of(shape: Shape, rank: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(core, generator=stream, dtype=torch.float64).to(dtype) / rank for core in shape.cores(rank)]


def by_definition(cores: list[Tensor], inside: int) -> Tensor:
    """W entry by entry: the product of one slice of every core, at the mode indices of the entry's row-major number."""
    modes = [core.shape[1] for core in cores]
    entries = []
    for number in range(math.prod(modes)):
        product, rest = torch.eye(1, dtype=cores[0].dtype), number
        for core, below in zip(cores, [math.prod(modes[j + 1 :]) for j in range(len(modes))], strict=True):
            product, rest = product @ core[:, rest // below], rest % below
        entries.append(product[0, 0])
    return torch.stack(entries).reshape(inside, -1)


# ---- shapes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "outside"), TABLE)
def test_published_shapes_are_of_their_maps(inside: int, outside: int) -> None:
    shape = shape_of(inside, outside)
    assert shape.product == inside * outside
    if shape.split is not None:
        assert math.prod(shape.modes[: shape.split]) == inside
    mirrored = shape_of(outside, inside)
    assert mirrored.modes == shape.modes[::-1] or inside == outside


def test_the_papers_shapes() -> None:
    # FedTT, table 6
    assert shape_of(768, 64) == Shape((8, 8, 12, 8, 8), 3)
    assert shape_of(64, 768) == Shape((8, 8, 12, 8, 8), 2)
    assert shape_of(4096, 64) == Shape((16, 16, 16, 4, 4, 4), 3)
    assert shape_of(64, 4096) == Shape((4, 4, 4, 16, 16, 16), 3)
    assert shape_of(768, 768).modes == (12, 8, 8, 8, 8, 12)
    assert [shape_of(*sides).size(5) for sides in ((768, 64), (768, 768), (4096, 64))] == [780, 920, 1100]
    assert shape_of(768, 64, published=False) == shape_of(768, 64)  # the factoriser finds it by itself
    assert shape_of(1024, 64).split is None
    assert shape_of(1024, 64, published=False).split == 3


@given(st.integers(2, 20_000), st.integers(2, 20_000))
def test_the_factoriser_keeps_the_split_and_makes_small_modes(inside: int, outside: int) -> None:
    shape = shape_of(inside, outside, published=False)
    assert shape.split is not None
    assert math.prod(shape.modes[: shape.split]) == inside
    assert math.prod(shape.modes[shape.split :]) == outside
    assert all(mode <= LARGEST or is_prime(mode) for mode in shape.modes)


def is_prime(number: int) -> bool:
    return number > 1 and all(number % side for side in range(2, math.isqrt(number) + 1))


@given(st.integers(2, 5000))
def test_no_factoring_is_shorter_or_more_equal(number: int) -> None:
    found = factors(number)
    small = math.prod(side for side in found if side <= LARGEST)
    others = [sides for sides in every_factoring(small) if max(sides) <= LARGEST]
    chosen = [side for side in found if side <= LARGEST]
    assert not chosen or (len(chosen), sum(chosen)) == min((len(sides), sum(sides)) for sides in others)


def every_factoring(number: int) -> list[tuple[int, ...]]:
    """All of them, whatever the size of their factors."""
    found = [(number,)]
    for side in range(2, number // 2 + 1):
        if number % side == 0:
            found += [(side, *rest) for rest in every_factoring(number // side)]
    return found


def test_a_prefix_that_is_no_input_has_no_split() -> None:
    assert split((4, 8, 8, 8, 8, 4), 1024).split is None
    assert split((2, 3), 2).split == 1
    assert split((2, 3), 6).split is None  # nothing would be left for the output
    assert shape_of(6, 1).split is None
    assert shape_of(1, 6).split is None


# ---- products ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inside", "modes"), [(6, (2, 3, 4)), (4, (2, 2, 3, 2)), (3, (3, 5)), (2, (2, 2, 2))])
def test_the_matrix_is_what_the_definition_says(inside: int, modes: tuple[int, ...]) -> None:
    cores = train_of(split(modes, inside), 3)
    torch.testing.assert_close(dense(cores, inside), by_definition(cores, inside), rtol=0, atol=1e-14)


def close(cores: list[Tensor], shape: Shape, inside: int, atol: float) -> None:
    x = torch.randn((2, 3, inside), generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(cores[0].dtype)
    expected = multiply(x, cores, shape, "dense")
    scale = float(expected.abs().max())
    for way in WAYS if shape.split is not None else ("dense",):
        torch.testing.assert_close(multiply(x, cores, shape, way), expected, rtol=0, atol=atol * scale)
    assert expected.shape == (2, 3, shape.product // inside)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("inside", "outside"), TABLE)
def test_all_ways_agree_on_published_shapes(inside: int, outside: int, dtype: torch.dtype, atol: float) -> None:
    shape = shape_of(inside, outside)
    close(train_of(shape, 5, dtype), shape, inside, atol)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_all_ways_agree_on_random_shapes(left: list[int], right: list[int], rank: int, seed: int) -> None:
    shape = Shape((*left, *right), len(left))
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        close(train_of(shape, rank, dtype, seed), shape, math.prod(left), atol)


def test_a_shape_without_a_split_is_only_multiplied_densely() -> None:
    shape = shape_of(1024, 64)
    cores = train_of(shape, 2)
    with pytest.raises(ValueError, match="no split"):
        multiply(torch.zeros(1, 1024, dtype=torch.float64), cores, shape, "contract")
    assert multiply(torch.zeros(1, 1024, dtype=torch.float64), cores, shape).shape == (1, 64)


def test_a_tensorised_map_has_the_rank_of_its_split() -> None:
    shape = shape_of(768, 64)
    left, right = halves(train_of(shape, 5), 3)
    assert (left.shape, right.shape) == ((768, 5), (5, 64))
    assert int(torch.linalg.matrix_rank(dense(train_of(shape, 5), 768))) == 5


@pytest.mark.parametrize("way", WAYS)
def test_gradients(way: Way) -> None:
    shape = Shape((2, 3, 2, 2), 2)
    cores = [core.requires_grad_() for core in train_of(shape, 2)]
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *cores: multiply(x, cores, shape, way), (x, *cores))


# ---- prices --------------------------------------------------------------------------------------------------------------


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Multiplications of all matrix products inside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.total += math.prod(args[0].shape) * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("inside", "outside"), [(768, 64), (64, 768), (384, 64), (12, 6)])
def test_prices_are_what_is_multiplied(inside: int, outside: int, way: Way, rows: int) -> None:
    shape = shape_of(inside, outside)
    cores, x = train_of(shape, 5), torch.zeros(rows, inside, dtype=torch.float64)
    with Counted() as counted:
        multiply(x, cores, shape, way)
    assert counted.total == costs(shape, [5] * (len(shape.modes) - 1), inside, rows)[way]


def test_the_cheapest_way_depends_on_the_rows() -> None:
    shape = shape_of(768, 64)
    assert cheapest(shape, [5] * 4, 768, 1) == "contract"
    assert cheapest(shape, [5] * 4, 768, 6000) == "halves"
    wide = Shape((2, 2), 1)
    assert cheapest(wide, [64], 2, 1000) == "dense"
    assert cheapest(shape_of(1024, 64), [5] * 5, 1024, 1) == "dense"


def test_the_cheapest_way_is_taken_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, seen = Shape((2, 2), 1), []
    monkeypatch.setattr("fedquilt.adapters.tt.maps.contract", lambda *given: seen.append(given) or contract(*given))
    multiply(torch.zeros(1000, 2, dtype=torch.float64), train_of(wide, 64), wide)
    assert not seen
    multiply(torch.zeros(1, 768, dtype=torch.float64), train_of(shape_of(768, 64), 5), shape_of(768, 64))
    assert len(seen) == 1


# ---- start ---------------------------------------------------------------------------------------------------------------


def test_the_start_has_lorettas_variance() -> None:
    shape = shape_of(768, 64)
    found = [dense(spread(shape, 5, 768, torch.Generator().manual_seed(seed)), 768).square().mean() for seed in range(400)]
    spreads = torch.stack(found)
    error = float(spreads.std() / len(found) ** 0.5)
    assert abs(float(spreads.mean()) - 1 / (768 + 64)) < 4 * error
    assert error < 0.1 / (768 + 64)


# ---- what averaging costs (FedTT+'s argument) ------------------------------------------------------------------------------


def gap(moving: set[int]) -> float:
    """||W(mean cores) - mean W|| / ||mean W|| of five clients who moved these cores away from common ones."""
    shape = Shape((4, 4, 6, 4, 4), 3)
    common = train_of(shape, 3)
    clients = [train_of(shape, 3, seed=k + 1) for k in range(5)]
    clients = [[own[j] if j in moving else common[j] for j in range(5)] for own in clients]
    mean = [torch.stack([own[j] for own in clients]).mean(0) for j in range(5)]
    ideal = torch.stack([dense(own, 96) for own in clients]).mean(0)
    return float((dense(mean, 96) - ideal).norm() / ideal.norm())


def test_the_mean_of_trains_is_exact_for_one_moving_core_only() -> None:
    every, paper, single = gap({0, 1, 2, 3, 4}), gap({0, 2, 4}), max(gap({j}) for j in range(5))
    assert every > paper > 0.1
    assert single < 1e-12
