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
    """Runs whose configurations differ in nothing but the seed: no seed twice, and all of them finished or none."""

    label: str
    runs: tuple[RunData, ...]

    @property
    def seeds(self) -> str:
        """Their seeds, for a table cell; with the partition's where the run's own do not tell them apart."""
        pairs = [_seeds(run) for run in self.runs]
        alone = len({own for own, _ in pairs}) == len(pairs)
        return ", ".join(own if alone else f"{own} (partition {parts})" for own, parts in pairs)


@dataclass(frozen=True)
class _Kin:
    """A group before it has a label."""

    runs: tuple[RunData, ...]
    choices: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.runs[0].finished


def group_runs(runs: Sequence[RunData]) -> list[Group]:
    """Runs of one configuration together, in the order in which they came; labels are unique.

    Only other seeds are evidence: of several runs with one seed the first is in the group, each other one stands alone. An
    unfinished run is never with a finished one, whose score is of a later round.
    """
    defaults = {key: value for run in runs for key, value in run.defaults().items()}
    found: dict[str, list[RunData]] = {}
    for place, run in enumerate(runs):
        same = json.dumps([_choices(run, defaults), run.finished], sort_keys=True, default=str)
        others = found.setdefault(same, [])
        if _seeds(run) in map(_seeds, others):
            others = found.setdefault(f"{same} {place}", [])
        others.append(run)
    groups = [_Kin(tuple(members), _choices(members[0], defaults)) for members in found.values()]
    labels = [_label(place, groups) for place in range(len(groups))]
    unique = [
        label if labels.count(label) == 1 else f"{label} [{group.runs[0].path}]"
        for label, group in zip(labels, groups, strict=True)
    ]
    return [Group(label, group.runs) for label, group in zip(unique, groups, strict=True)]


def _seeds(run: RunData) -> tuple[str, str]:
    """The run's seed and its partition's, which is the same where it has none of its own."""
    return run.setting("seed", default="?"), run.setting(*reversed(SEED_KEYS), default="?")


def _choices(run: RunData, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What tells configurations apart. A value that is the default is none of it: the version that another run was made with may
    not have had that key."""
    beside = (*SEED_KEYS, *NAMING_KEYS)
    flat = run.flat().items()
    return {key: value for key, value in flat if key not in beside and not (key in defaults and defaults[key] == value)}


def run_name(run: RunData) -> str:
    """The configured name; the folder's where the configuration has none."""
    return run.setting("name", default=run.path.resolve().name)


def _label(place: int, groups: Sequence[_Kin]) -> str:
    """The name, with what tells it from other groups of the same name: settings, being unfinished, the folder of a repeat."""
    own, name = groups[place], run_name(groups[place].runs[0])
    twins = [group for other, group in enumerate(groups) if other != place and run_name(group.runs[0]) == name]
    flat = own.runs[0].flat()
    keys = {key for twin in twins for key in {*own.choices, *twin.choices} if own.choices.get(key) != twin.choices.get(key)}
    shown = [f"{key}={flat.get(key, 'unset')}" for key in sorted(keys)]
    told = [*shown[:3], *(["..."] if len(shown) > 3 else [])]
    same = [twin for twin in twins if twin.choices == own.choices]
    if not own.finished and any(twin.finished for twin in same):
        told.append("unfinished")
    if len(own.runs) == 1 and any(twin.finished == own.finished for twin in same):
        told.append(own.runs[0].path.resolve().name)
    return f"{name} ({', '.join(told)})" if told else name


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
    span: int | str = done[0] if len(done) == 1 else f"{done[0]}–{done[-1]}"
    return span if group.runs[0].finished else f"{span} (unfinished)"


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
