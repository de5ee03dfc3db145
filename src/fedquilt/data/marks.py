"""What rows carry beside their label: the question they belong to, what choosing them is worth, the answers that are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Marks:
    """Of ``n`` rows; what a task does not have is empty.

    Attributes:
        groups: ``[n]`` number of the row's question: its candidates are rows of their own.
        worth: ``[n]`` score for choosing the row among those of its question.
        references: ``n`` tuples of right answers; an empty one where there is none.
    """

    groups: Index | None = None
    worth: NDArray[np.float64] | None = None
    references: tuple[tuple[str, ...], ...] = ()

    def take(self, rows: Index) -> Marks:
        """The given rows, in the given order."""
        return Marks(
            None if self.groups is None else self.groups[rows],
            None if self.worth is None else self.worth[rows],
            tuple(self.references[row] for row in rows) if self.references else (),
        )

    def units(self, n: int) -> list[Index]:
        """Rows that stay together: those of a question, or each of the ``n`` by itself; in order of their first rows."""
        if self.groups is None:
            return list(np.arange(n, dtype=np.int64)[:, None])
        of = numbered(self.groups.tolist())
        return np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])


NO_MARKS = Marks()


def numbered(values: Sequence[Any]) -> Index:
    """Equal values get equal numbers, in the order in which they first occur.

    >>> numbered(["b", "a", "b"])
    array([0, 1, 0])
    """
    found: dict[Any, int] = {}
    return np.array([found.setdefault(value, len(found)) for value in values], dtype=np.int64)


def joined(units: Sequence[Index]) -> Index:
    """The rows of some units, ascending."""
    return np.sort(np.concatenate(units)) if len(units) else np.empty(0, np.int64)
