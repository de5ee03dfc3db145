"""Algebra on flat dicts of tensors, against numpy and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedquilt import tree

A = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3.0]])}
B = {"a": torch.tensor([[10.0]]), "b": torch.tensor([-1.0, 0.5])}


def test_elementwise_operations_sort_keys_and_are_pure() -> None:
    before = {key: x.clone() for key, x in A.items()}
    assert {k: x.tolist() for k, x in tree.add(A, B).items()} == {"a": [[13.0]], "b": [0.0, 2.5]}
    assert {k: x.tolist() for k, x in tree.sub(A, B).items()} == {"a": [[-7.0]], "b": [2.0, 1.5]}
    assert {k: x.tolist() for k, x in tree.scale(A, -2.0).items()} == {"a": [[-6.0]], "b": [-2.0, -4.0]}
    assert {k: x.tolist() for k, x in tree.zeros_like(A).items()} == {"a": [[0.0]], "b": [0.0, 0.0]}
    for result in (tree.add(A, B), tree.sub(A, B), tree.scale(A, 1.0), tree.zeros_like(A)):
        assert list(result) == ["a", "b"]
    assert tree.equal(A, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    x = {"a": torch.ones(2, dtype=dtype)}
    results = (
        tree.add(x, x),
        tree.sub(x, x),
        tree.scale(x, 0.5),
        tree.zeros_like(x),
        tree.stack([x, x]),
        tree.row(tree.stack([x]), 0),
    )
    assert all(result["a"].dtype == dtype for result in results)


def test_trees_of_different_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trees differ in keys: \['b', 'c'\]"):
        tree.same_keys({"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)})
    with pytest.raises(ValueError, match="differ in keys"):
        tree.add(A, {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="differ in keys"):
        tree.stack([A, B, {}])
    tree.same_keys(A)
    tree.same_keys(A, B, A)


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_rows_of_a_stack_are_what_was_stacked(n: int, seed: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    states = [{"m": torch.randn(2, 3, generator=noise), "s": torch.randn((), generator=noise)} for _ in range(n)]
    stacked = tree.stack(states)
    assert tree.length(stacked) == n
    assert {key: tuple(x.shape) for key, x in stacked.items()} == {"m": (n, 2, 3), "s": (n,)}
    assert all(tree.equal(tree.row(stacked, i), states[i]) for i in range(n))
    order = torch.randperm(n, generator=noise)
    assert tree.equal(tree.rows(stacked, order), tree.stack([states[i] for i in order.tolist()]))
    assert tree.equal(tree.rows(stacked, order.tolist()), tree.rows(stacked, order))


def test_row_is_a_view_and_rows_a_copy() -> None:
    stacked = {"a": torch.zeros(3, 2)}
    tree.row(stacked, 1)["a"][:] = 5.0
    tree.rows(stacked, [0, 0])["a"][:] = 9.0
    assert stacked["a"].tolist() == [[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]]
    assert tree.length(tree.rows(stacked, [])) == 0


@pytest.mark.parametrize("bad", [{}, {"a": torch.ones(2), "b": torch.ones(3)}])
def test_length_of_what_is_no_stack(bad: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="not a stack"):
        tree.length(bad)


def test_select_and_merge() -> None:
    assert list(tree.select({"c": A["a"], "a": A["a"], "b": A["b"]}, ["c", "a"])) == ["a", "c"]
    with pytest.raises(KeyError):
        tree.select(A, ["nothing"])
    merged = tree.merge({"z": A["a"], "b": A["b"]}, {"b": B["b"], "a": B["a"]})
    assert list(merged) == ["a", "b", "z"]
    assert merged["b"] is B["b"]
    assert merged["z"] is A["a"]


def test_flatten_is_in_sorted_key_order_and_float64() -> None:
    flat = tree.flatten(A)
    assert flat.dtype == torch.float64
    assert flat.tolist() == [3.0, 1.0, 2.0]
    assert tree.flatten(A, torch.float16).dtype == torch.float16
    assert tree.numel(A) == 3
    assert tree.numel({}) == 0


def test_flatten_rows_is_flatten_of_every_row() -> None:
    noise = torch.Generator().manual_seed(0)
    stacked = {"b": torch.randn(4, 2, 3, generator=noise), "a": torch.randn(4, generator=noise)}
    matrix = tree.flatten_rows(stacked)
    assert matrix.shape == (4, 7)
    assert matrix.dtype == torch.float64
    assert all(torch.equal(matrix[i], tree.flatten(tree.row(stacked, i))) for i in range(4))


def test_as_matrix_of_any_leaf() -> None:
    for shape, expected in (((4,), (4, 1)), ((4, 2, 3), (4, 6)), ((0, 2, 3), (0, 6)), ((4, 0), (4, 0))):
        assert tree.as_matrix(torch.zeros(shape)).shape == expected
    assert tree.as_matrix(torch.arange(12).reshape(2, 2, 3))[1].tolist() == [6, 7, 8, 9, 10, 11]


def test_norm_rows_is_the_norm_over_all_leaves_together() -> None:
    stacked = {"a": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]]])}
    assert tree.norm_rows(stacked).tolist() == [5.0, 0.0]
    noise = torch.Generator().manual_seed(1)
    random = {"x": torch.randn(3, 50, generator=noise), "y": torch.randn(3, 4, 5, generator=noise)}
    np.testing.assert_allclose(
        tree.norm_rows(random).numpy(), np.linalg.norm(tree.flatten_rows(random).numpy(), axis=1), rtol=1e-14
    )


def test_norm_rows_does_not_overflow_in_float32() -> None:
    # Squares of 1e30 overflow float32, not float64.
    assert tree.norm_rows({"a": torch.full((1, 4), 1e30)}).item() == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"a": torch.tensor([1.0, 2.0])}, True),
        ({"a": torch.tensor([1.0, 2.0000002])}, False),
        ({"a": torch.tensor([1.0, 2.0], dtype=torch.float64)}, False),
        ({"a": torch.tensor([[1.0, 2.0]])}, False),
        ({"b": torch.tensor([1.0, 2.0])}, False),
        ({}, False),
    ],
)
def test_equal_is_bit_for_bit(other: dict[str, Tensor], same: bool) -> None:
    assert tree.equal({"a": torch.tensor([1.0, 2.0])}, other) is same


def test_max_difference() -> None:
    assert tree.max_difference(A, B) == 7.0
    assert tree.max_difference({}, {}) == 0.0
    assert tree.max_difference({"a": torch.empty(0)}, {"a": torch.empty(0)}) == 0.0
    # Subtracted in float64: in float16 this difference would be rounded.
    half = {"a": torch.tensor([2048.0], dtype=torch.float16)}
    assert tree.max_difference(half, {"a": torch.tensor([1.5], dtype=torch.float16)}) == 2046.5
    with pytest.raises(ValueError, match="differ in keys"):
        tree.max_difference(A, {})


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12), st.booleans())
def test_rows_of_several_stacks_are_stacked_in_their_order(which: list[tuple[int, int]], mixed: bool) -> None:
    stacks = [{"a": torch.arange(8.0).view(4, 2) + 100 * i, "s": torch.arange(4.0) - i} for i in range(3)]
    rows = [tree.unstack(x) for x in stacks]
    chosen: list[tree.Tree] = [rows[i][j] for i, j in which]
    if mixed:
        chosen[-1] = dict(chosen[-1])
    found = tree.stack(chosen)
    assert tree.equal(found, {key: torch.stack([stacks[i][key][j] for i, j in which]) for key in ("a", "s")})
    found["a"] += 1.0
    assert stacks[0]["a"][0, 0] == 0.0, "a copy"


def test_a_row_is_a_view_of_its_stack_and_a_state_like_any_other() -> None:
    stacked = {"b": torch.zeros(3, 2), "a": torch.arange(3.0)}
    row = tree.unstack(stacked)[1]
    assert tree.equal(row, tree.row(stacked, 1))
    assert (len(row), set(row), row.keys() - {"a"}) == (2, {"a", "b"}, {"b"})
    row["b"][:] = 5.0
    assert stacked["b"].tolist() == [[0.0, 0.0], [5.0, 5.0], [0.0, 0.0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_finite_finds_what_is_no_number_and_is_not_misled_by_sums_that_overflow(value: float) -> None:
    assert tree.finite({"a": torch.full((4,), 3e38), "b": torch.ones(2, 2), "c": torch.zeros(0)})
    assert not tree.finite({"a": torch.zeros(5), "b": torch.tensor([1.0, value])})
    assert not tree.finite({"a": torch.tensor([value, -value])})


def test_unstack_is_the_inverse_of_stack_and_own_rows_are_no_views() -> None:
    states = [{"a": torch.full((2,), float(i)), "b": torch.tensor(float(i))} for i in range(3)]
    rows = tree.unstack(tree.stack(states))
    assert all(tree.equal(row, state) for row, state in zip(rows, states, strict=True))
    assert rows[0]["a"].untyped_storage().nbytes() == 24, "a view of all three"
    assert tree.own(rows[0])["a"].untyped_storage().nbytes() == 8
    assert tree.equal(tree.own(rows[1]), states[1])
