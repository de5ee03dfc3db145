"""Rows of a table by the values of their columns: several tasks in one file, and evaluation rows that the data names itself."""

from __future__ import annotations

from collections.abc import Mapping

from fedquilt.data import labels
from fedquilt.data.tables import Table
from fedquilt.errors import DataError, did_you_mean

Wanted = Mapping[str, tuple[str, ...]]


def filtered(table: Table, where: Wanted) -> Table:
    """The rows that have, in every column of ``where``, one of its values; the table itself if there is no condition.

    Raises:
        DataError: a value does not occur, or no row is left.
    """
    return table.take(_matching(table, where)) if where else table


def parted(table: Table, where: Wanted) -> tuple[Table, Table]:
    """(the other rows, the rows that :func:`filtered` keeps).

    Raises:
        DataError: as :func:`filtered`, or all rows are chosen.
    """
    chosen = _matching(table, where)
    others = sorted(set(range(len(table))) - set(chosen))
    if not others:
        fix = "name fewer values in eval_where"
        raise DataError("every row is for evaluation: none is left to train on", where=f"{table.where}, eval_where", fix=fix)
    return table.take(others), table.take(chosen)


def _matching(table: Table, where: Wanted) -> list[int]:
    rows = list(range(len(table)))
    for name, values in where.items():
        # Values are compared as labels are: 1, 1.0 and "1" are the same one.
        found = [None if labels.is_null(value) else labels.key(value) for value in table.columns[name]]
        for value in values:
            if value not in found:
                fix = did_you_mean(value, sorted({text for text in found if text is not None})[:30])
                raise DataError(f"no row has {value!r} in column {name!r}", where=table.where, fix=fix)
        rows = [i for i in rows if found[i] in values]
    if not rows:
        raise DataError("no row meets all conditions", where=f"{table.where}, columns {', '.join(where)}", fix="check where")
    return rows
