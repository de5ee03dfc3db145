"""The plane of the adapter map: one fit over all rounds, distances kept where a plane can keep them."""

from __future__ import annotations

import sys
from itertools import combinations
from types import ModuleType

import numpy as np
import pytest

from fedquilt.errors import ConfigError, StateError
from fedquilt.report.project import project
from fedquilt.report.schema import Point, Points, RowPoint


def rounds(*vectors: list[list[float | None]], rows: list[list[float]] | None = None) -> list[Points]:
    """One round per argument; slot numbers count up."""
    found = []
    for number, here in enumerate(vectors, 1):
        points = tuple(Point(client=0, slot=n, row=1, task="t", at=tuple(at)) for n, at in enumerate(here))
        bank = tuple(RowPoint(row=n, at=tuple(at)) for n, at in enumerate(rows or []))
        found.append(Points(round=number, points=points, rows=bank))
    return found


def in_a_plane(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    basis, _ = np.linalg.qr(rng.normal(size=(width, 2)))
    return rng.normal(size=(n, 2)) @ basis.T + rng.normal(size=width)


def test_pca_keeps_all_distances_between_points_of_a_plane_over_rounds() -> None:
    flat = in_a_plane(np.random.default_rng(0), 9, 64)
    found = project(rounds(flat[:4].tolist(), flat[4:8].tolist(), rows=[flat[8].tolist()]), "pca")
    marks = [mark for frame in found.frames for mark in frame.marks]
    original = [*flat[:4], flat[8], *flat[4:8], flat[8]]
    for (a, x), (b, y) in combinations(zip(marks, original, strict=True), 2):
        assert np.hypot(a.x - b.x, a.y - b.y) == pytest.approx(np.linalg.norm(x - y), abs=1e-9)


def test_one_vector_lies_at_one_place_in_every_round() -> None:
    rng = np.random.default_rng(1)
    same = rng.normal(size=16).tolist()
    found = project(rounds([same, *rng.normal(size=(5, 16)).tolist()], [same, *rng.normal(size=(5, 16)).tolist()]), "pca")
    first, second = (frame.dots[0] for frame in found.frames)
    assert (first.x, first.y) == pytest.approx((second.x, second.y))


def test_the_axes_say_how_much_of_the_variance_they_show() -> None:
    found = project(rounds([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]), "pca")
    assert found.x == "first principal component (90% of the variance)"
    assert found.y == "second principal component (10% of the variance)"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_vectors_that_are_not_finite_are_left_out_and_counted(bad: float | None) -> None:
    found = project(rounds([[1.0, 2.0], [bad, 0.0], [0.0, 1.0]]), "pca")
    assert found.left_out == 1
    assert [dot.slot for dot in found.frames[0].dots] == [0, 2]


def test_one_point_equal_points_and_one_dimension_have_a_place() -> None:
    for vectors in ([[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], [[1.0], [2.0]]):
        found = project(rounds(vectors), "pca")
        assert all(np.isfinite([dot.x, dot.y]).all() for dot in found.frames[0].dots)


def test_vectors_of_different_length_are_an_error() -> None:
    with pytest.raises(StateError, match="differ in length"):
        project(rounds([[1.0, 2.0], [1.0]]), "pca")


def test_umap_is_fitted_once_over_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []

    class UMAP:
        def __init__(self, **options: object) -> None:
            assert options["n_neighbors"] == 9
            assert options["random_state"] == 0

        def fit_transform(self, matrix: np.ndarray) -> np.ndarray:
            fitted.append(matrix)
            return matrix[:, :2].astype(np.float32)

    module = ModuleType("umap")
    module.UMAP = UMAP  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    vectors = np.random.default_rng(2).normal(size=(10, 8)).astype(np.float32)
    found = project(rounds(vectors[:5].tolist(), vectors[5:].tolist()), "umap")
    assert [matrix.shape for matrix in fitted] == [(10, 8)]
    assert found.frames[1].dots[2].x == pytest.approx(vectors[7, 0])
    assert found.x == "UMAP 1"


def test_umap_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedquilt\[viz\]', or use --projection pca"):
        project(rounds([[1.0, 2.0]]), "umap")
