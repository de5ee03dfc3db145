"""A label column as numbers: class numbers for classification, values for regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedquilt.errors import DataError, did_you_mean

MAX_FOUND = 1000
"""More distinct labels than this were hardly meant as classes."""


def is_null(value: Any) -> bool:
    """None, or the NaN by which some writers store a missing number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def key(value: Any) -> str:
    """The text by which a label is known: 1, 1.0 and "1" are the same one; True is "true".

    >>> [key(x) for x in (1, 1.0, "1 ", True, 0.5)]
    ['1', '1', '1', 'true', '0.5']
    """
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _order(name: str) -> tuple[bool, int, str]:
    number = name.removeprefix("-").isdecimal()
    return (not number, int(name) if number else 0, name)


def label_set(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """The distinct labels: whole numbers by size, then other names in alphabetical order.

    Raises:
        DataError: fewer than two, or so many that the column is no label.
    """
    found = sorted({key(value) for value in values if not is_null(value)}, key=_order)
    if len(found) < 2:
        fix = "add rows with another label, or name the column that tells them apart: label = '...'"
        raise DataError(f"one label is not enough to learn from: {', '.join(found) or 'none'}", where=where, fix=fix)
    if len(found) > MAX_FOUND:
        fix = "is this the label column? For numbers to be predicted write kind = 'regression'"
        raise DataError(f"{len(found)} distinct labels", where=where, fix=fix)
    return tuple(found)


def classes(values: Sequence[Any], names: Sequence[str], rows: Sequence[int], where: str) -> NDArray[np.int64]:
    """Class numbers ``[n]``. A value is found by its name, or by its position when no name looks like a whole number.

    Args:
        rows: the numbers of the rows in their source, from 1, for messages.

    Raises:
        DataError: a null label, or one outside the set.
    """
    numbers = {str(i): i for i in range(len(names))}
    by_position = not any(name.removeprefix("-").isdecimal() for name in names)
    lookup = (numbers if by_position else {}) | {name: i for i, name in enumerate(names)}
    if by_position:
        lookup = {"false": 0, "true": 1} | lookup
    result = np.empty(len(values), np.int64)
    for i, value in enumerate(values):
        if is_null(value):
            raise _null(rows[i], where)
        found = lookup.get(key(value))
        if found is None:
            fix = did_you_mean(key(value), names) + (f"; or their numbers 0 to {len(names) - 1}" if by_position else "")
            raise DataError(f"label {value!r} is not in the label set", where=f"{where}, row {rows[i]}", fix=fix)
        result[i] = found
    return result


def targets(values: Sequence[Any], rows: Sequence[int], where: str) -> NDArray[np.float64]:
    """Numbers to be predicted ``[n]``.

    Raises:
        DataError: a null, something that is no number, or an infinite one.
    """
    fix = "write a number there, or kind = 'classification' for labels that are names"
    result = np.empty(len(values), np.float64)
    for i, value in enumerate(values):
        if is_null(value):
            raise _null(rows[i], where)
        try:
            result[i] = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{value!r} is not a number", where=f"{where}, row {rows[i]}", fix=fix) from error
        if not math.isfinite(result[i]):
            raise DataError(f"{value!r} is not a finite number", where=f"{where}, row {rows[i]}", fix=fix)
    return result


def _null(row: int, where: str) -> DataError:
    fix = "remove or label the row; test splits often have no labels"
    return DataError("there is no label", where=f"{where}, row {row}", fix=fix)
