"""Tables as data, shown alike by the terminal, the HTML page and CSV files; and the one-row-per-run summary."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedquilt.report.read import RunData

SEED_KEYS = ("seed", "partition.seed")
COST_COLUMNS = ("adapter", "head", "total", "MB up/client/round", "MB total", "minutes")
NAMING_KEYS = ("name",)  # a label says nothing about what was computed


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over ``n`` runs."""

    mean: float
    sd: float
    n: int


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Table:
    """Column heads and rows of raw values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns")

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers (and is aligned to the right)."""
        return not any(isinstance(row[column], str) for row in self.rows)

    def pick(self, columns: Sequence[str]) -> Table:
        """These columns only, in this order."""
        places = [self.columns.index(name) for name in columns]
        return Table(tuple(columns), tuple(tuple(row[place] for place in places) for row in self.rows))

    def csv(self) -> str:
        """All rows as CSV; a spread is its mean."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([cell.mean if isinstance(cell, Spread) else cell for cell in row] for row in self.rows)
        return out.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """One dict per row, for JSON: no NaN in it; a spread is ``{"mean", "sd", "n"}``."""
        return [{name: _plain(cell) for name, cell in zip(self.columns, row, strict=True)} for row in self.rows]


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have; dicts, lists and tuples are gone through.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Spread):
        return {"mean": cell.mean, "sd": cell.sd, "n": cell.n}
    return finite(cell)


def show(cell: Cell) -> str:
    """A cell for people.

    >>> show(0.00267), show(0.81234), show(123456), show(None), show(Spread(0.5, 0.01, 3)), show(1234.56)
    ('0.0027', '0.812', '123,456', '–', '0.500 ± 0.010', '1,234.6')
    """
    if isinstance(cell, Spread):
        return f"{show(cell.mean)} ± {show(cell.sd)}"
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return "–"
        if 0 < abs(cell) < 0.01:
            return f"{cell:.2g}"
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return "–" if cell is None else cell


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ in nothing but the seed."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def seeds(self) -> str:
        """Their seeds, for a table cell."""
        return ", ".join(run.setting("seed", default="?") for run in self.runs)


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Runs of one configuration together, in the order in which they came; labels are unique."""
    defaults = {key: value for run in runs for key, value in run.defaults().items()}
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(json.dumps(_choices(run, defaults), sort_keys=True, default=str), []).append(run)
    groups = list(found.values())
    choices = [_choices(members[0], defaults) for members in groups]
    labels = [_label(place, groups, choices) for place in range(len(groups))]
    return [Group(label, tuple(members)) for label, members in zip(labels, groups, strict=True)]


def _choices(run: RunData, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What tells configurations apart. A value that is the default is none of it: the version that another run was made with may
    not have had that key."""
    beside = (*SEED_KEYS, *NAMING_KEYS)
    flat = run.flat().items()
    return {key: value for key, value in flat if key not in beside and not (key in defaults and defaults[key] == value)}


def run_name(run: RunData) -> str:
    """The configured name; the folder's where the configuration has none."""
    return run.setting("name", default=run.path.resolve().name)


def _label(place: int, groups: list[list[RunData]], choices: list[dict[str, Any]]) -> str:
    """The name, with the settings in which it differs from other groups of the same name."""
    names = [run_name(members[0]) for members in groups]
    twins = [choices[other] for other in range(len(names)) if names[other] == names[place] and other != place]
    if not twins:
        return names[place]
    own, flat = choices[place], groups[place][0].flat()
    keys = {key for twin in twins for key in {*own, *twin} if own.get(key) != twin.get(key)}
    shown = [f"{key}={flat.get(key, 'unset')}" for key in sorted(keys)]
    return f"{names[place]} ({', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''})"


def spread(values: Iterable[float | None]) -> Cell:
    """One value as it is, several as mean and standard deviation, none as None."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return known[0] if known else None
    return Spread(statistics.fmean(known), statistics.stdev(known), len(known))


def summary_rows(runs: Sequence[RunData]) -> Table:
    """One row per configuration: scores (mean ± sd over seeds), parameters, megabytes, minutes.

    Scores are those of the last evaluation: ``mean`` over slots, per task the mean of its slots' primary metric.
    """
    groups = group_runs(runs)
    tasks = sorted({task for run in runs for task in run.tasks})
    heads = ("run", "method", "seeds", "rounds", "mean", *tasks, "clustering")
    rows = [(group.label, _method(group), group.seeds, _rounds(group), *_scores(group, tasks), *_sizes(group)) for group in groups]
    return Table((*heads, *COST_COLUMNS), tuple(rows))


def score_columns(summary: Table) -> tuple[str, ...]:
    """The columns of a summary that are not costs: together they are too wide for most screens."""
    return tuple(name for name in summary.columns if name not in COST_COLUMNS)


def _method(group: Group) -> str:
    return group.runs[0].setting("method.name", "method")


def _rounds(group: Group) -> Cell:
    done = sorted({run.rounds[-1].round if run.rounds else 0 for run in group.runs})
    if all(run.finished for run in group.runs):
        return done[0] if len(done) == 1 else f"{done[0]}–{done[-1]}"
    return f"{done[0]} (unfinished)"


def _scores(group: Group, tasks: list[str]) -> list[Cell]:
    lasts = [run.evals[-1] for run in group.runs if run.evals]
    per_task = [spread(row.tasks[task].slot_mean if task in row.tasks else None for row in lasts) for task in tasks]
    return [
        spread(row.mean for row in lasts),
        *per_task,
        spread(row.clustering.accuracy if row.clustering else None for row in lasts),
    ]


def _sizes(group: Group) -> list[Cell]:
    done = [run.summary for run in group.runs if run.summary]
    numbers: list[Cell] = [None, None, None]
    if done:  # equal in the group: they follow from the configuration
        numbers = [done[0].parameters.adapter, done[0].parameters.head, done[0].parameters.total]
    return [
        *numbers,
        spread(row.bytes.up_per_client_round / 1e6 for row in done),
        spread((row.bytes.up + row.bytes.down) / 1e6 for row in done),
        spread(row.seconds.total / 60 if row.seconds else None for row in done),
    ]
