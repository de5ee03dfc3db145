"""Adapters of all rounds in one plane. The projection is fitted once over everything, or the frames would not align."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedquilt.errors import ConfigError, StateError
from fedquilt.report.schema import Points

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

Kind = Literal["pca", "umap"]


@dataclass(frozen=True)
class RowDot:
    """One row of the bank in the plane, after the round's step."""

    row: int
    x: float
    y: float


@dataclass(frozen=True)
class Dot(RowDot):
    """One uploaded adapter in the plane."""

    client: int
    slot: int
    task: str


@dataclass(frozen=True)
class Frame:
    """One round."""

    round: int
    dots: tuple[Dot, ...]
    rows: tuple[RowDot, ...]

    @property
    def marks(self) -> tuple[RowDot, ...]:
        """All of both kinds."""
        return (*self.dots, *self.rows)


@dataclass(frozen=True)
class Map:
    """All rounds in one plane; ``left_out`` counts vectors with a number that is not finite."""

    frames: tuple[Frame, ...]
    x: str
    y: str
    left_out: int


def project(points: Sequence[Points], kind: Kind) -> Map:
    """Fit PCA or UMAP over the adapters and bank rows of all rounds together.

    Raises:
        ConfigError: UMAP is asked for and not installed.
        StateError: the vectors differ in length.
    """
    vectors = [at for row in points for at in _vectors(row) if _finite(at)]
    if len({len(vector) for vector in vectors}) > 1:
        raise StateError("the vectors of points.jsonl differ in length", why=str(sorted({len(v) for v in vectors})))
    matrix: Matrix = np.asarray(vectors, dtype=np.float64).reshape(len(vectors), -1)
    flat, x, y = _pca(matrix) if kind == "pca" else _umap(matrix)
    places = iter(flat.tolist())
    frames = []
    for row in points:
        dots = [Dot(p.row, *_pair(next(places)), p.client, p.slot, p.task) for p in row.points if _finite(p.at)]
        rows = [RowDot(r.row, *_pair(next(places))) for r in row.rows if _finite(r.at)]
        frames.append(Frame(row.round, tuple(dots), tuple(rows)))
    every = sum(len(row.points) + len(row.rows) for row in points)
    return Map(tuple(frames), x, y, every - len(vectors))


def _vectors(row: Points) -> list[tuple[float | None, ...]]:
    return [*(point.at for point in row.points), *(bank.at for bank in row.rows)]


def _finite(vector: Sequence[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in vector)


def _pair(place: list[float]) -> tuple[float, float]:
    return place[0], place[1]


def _padded(flat: Matrix) -> Matrix:
    """Two columns whatever the projection could find."""
    missing = 2 - flat.shape[1]
    return np.pad(flat, ((0, 0), (0, missing))) if missing > 0 else flat


def _pca(matrix: Matrix) -> tuple[Matrix, str, str]:
    from sklearn.decomposition import PCA

    names = ("first principal component", "second principal component")
    if len(matrix) < 2 or not np.ptp(matrix, axis=0).any():  # one place only: there is no direction to find
        return np.zeros((len(matrix), 2)), *names
    model: Any = PCA(n_components=min(2, *matrix.shape), svd_solver="full")
    flat = np.asarray(model.fit_transform(matrix), dtype=np.float64)
    shares = [*model.explained_variance_ratio_, 0.0][:2]
    x, y = (f"{name} ({share:.0%} of the variance)" for name, share in zip(names, shares, strict=True))
    return _padded(flat), x, y


def _umap(matrix: Matrix) -> tuple[Matrix, str, str]:
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the UMAP projection needs a package that is not installed",
            why=str(error),
            fix="pip install 'fedquilt[viz]', or use --projection pca",
        ) from error
    if len(matrix) < 5:  # fewer neighbours than a plane has directions: UMAP's spectral start is undefined
        flat, _, _ = _pca(matrix)
        return flat, "UMAP 1 (too few points: PCA)", "UMAP 2 (too few points: PCA)"
    model: Any = UMAP(n_components=2, n_neighbors=min(15, len(matrix) - 1), init="pca", random_state=0, n_jobs=1)
    return np.asarray(model.fit_transform(matrix), dtype=np.float64), "UMAP 1", "UMAP 2"
