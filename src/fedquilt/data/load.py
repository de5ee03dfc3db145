"""From a task's configuration to checked texts or images and labels, before any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedquilt.data import assets, labels, pictures
from fedquilt.data.forms import FORMS
from fedquilt.data.kinds import Kind
from fedquilt.data.marks import NO_MARKS, Marks, joined, numbered
from fedquilt.data.select import filtered, parted
from fedquilt.data.spec import Prompt, TaskConfig
from fedquilt.data.tables import Table, check_file, pick, read_file, read_hub
from fedquilt.data.transform import Content
from fedquilt.errors import DataError
from fedquilt.rng import numpy_generator

Say = Callable[[str], None]


@dataclass(frozen=True)
class RawSplit:
    """``n`` rows: one or two texts, or an image, and a label each; for generation instruction, context and response, no label."""

    texts: tuple[tuple[str, ...], ...]
    """Empty where there are images."""
    labels: NDArray[np.int64] | NDArray[np.float64]
    """``[n]`` class numbers (int64) or values to be predicted (float64); zeros for generation."""
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """Further columns ``[n]``, for partitions by column."""
    images: tuple[Content, ...] = ()
    """Encoded images, or their paths; empty where there are texts."""
    marks: Marks = NO_MARKS

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> RawSplit:
        """The given rows, in the given order."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        texts = tuple(self.texts[row] for row in rows) if self.texts else ()
        images = tuple(self.images[row] for row in rows) if self.images else ()
        return RawSplit(texts, self.labels[rows], columns, images, self.marks.take(rows))


@dataclass(frozen=True)
class RawTask:
    """One task with its two splits, and ``notes``: what was dropped or left out."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: RawSplit
    evaluation: RawSplit
    notes: tuple[str, ...] = ()
    prompt: Prompt = "chat"
    """How instruction and context become a prompt, where the kind is generation."""

    @property
    def has_images(self) -> bool:
        """Whether it is an image task."""
        return bool(self.train.images)


def load(task: TaskConfig, *, root: Path, cache: Path, seed: int, columns: Sequence[str] = (), say: Say | None = None) -> RawTask:
    """Read, check and subset one task.

    Args:
        root: folder that a relative ``file:`` path starts from.
        cache: folder of downloaded archives (``asset:`` sources).
        seed: of the hold-out and of the subsets; each task has its own stream.
        columns: further columns of the training rows to keep, for a partition by column.
        say: called with a sentence when something is downloaded.

    Raises:
        DataError: a source, file, split or column is missing, a label is null or outside the set, or a split has no usable row.
    """
    _check_eval_split(task, root)
    wanted = [*task.columns, *([] if task.kind == "generation" else [task.label]), *task.where]
    wanted += [task.group] if task.group else []
    train_table = filtered(_read(task, task.train_split, [*wanted, *task.eval_where, *columns], root, cache, say), task.where)
    train_table, chosen = parted(train_table, task.eval_where) if task.eval_where else (train_table, None)
    if task.group and chosen is not None and set(train_table.columns[task.group]) & set(chosen.columns[task.group]):
        fix = "choose by a column that is the same in all rows of a question"
        raise DataError("eval_where parts a question: some of its rows are for training", where=f"task {task.name!r}", fix=fix)
    names = _label_names(task, train_table)
    notes: list[str] = []
    train = _split(task, train_table, names, columns, "train", notes, cache)
    if task.eval_split is not None:
        chosen = filtered(_read(task, task.eval_split, wanted, root, cache, say), task.where)
    if chosen is None:
        train, evaluation = _hold_out(task, train, seed, notes)
    else:
        evaluation = _split(task, chosen, names, (), "evaluation", notes, cache)
    train = _subset(train, task.max_train, seed, (task.name, "train"), notes)
    evaluation = _subset(evaluation, task.max_eval, seed, (task.name, "evaluation"), notes)
    return RawTask(task.name, task.kind, names, task.metrics, train, evaluation, tuple(notes), task.prompt)


def _read(task: TaskConfig, split: str, wanted: Sequence[str], root: Path, cache: Path, say: Say | None) -> Table:
    if task.form is None:
        return _read_plain(task, split, wanted, root, cache, say)
    table = FORMS[task.form](_read_plain(task, split, None, root, cache, say))
    pick(list(table.columns), wanted, table.where)
    return table


def _read_plain(task: TaskConfig, split: str, wanted: Sequence[str] | None, root: Path, cache: Path, say: Say | None) -> Table:
    kind, _, rest = task.source.partition(":")
    if kind == "hub":
        repo, _, config = rest.partition(":")
        return read_hub(repo, config or None, split, wanted, task.label, task.image)
    path = root / Path(rest.replace("{split}", split)).expanduser()
    if kind == "file":
        return read_file(path, wanted, () if task.image else task.columns)
    if kind == "folder":
        table = pictures.read_folder(path, str(task.image), task.label)
        pick(list(table.columns), wanted or (), table.where)
        return table
    rows = assets.dataset(rest, cache=cache, say=say)
    names = list(rows[0]) if wanted is None else pick(list(rows[0]), wanted, task.source)
    return Table({name: [row[name] for row in rows] for name in names}, task.source, assets.find(rest).labels)


def _check_eval_split(task: TaskConfig, root: Path) -> None:
    """Before anything is read or downloaded: can the source, if it is there, have an evaluation split of its own?"""
    kind, _, rest = task.source.partition(":")
    if task.eval_split is None or kind == "hub" or "{split}" in rest:
        return
    if kind == "asset":
        assets.find(rest)
    else:
        there = check_file if kind == "file" else pictures.check_folder
        there(root / Path(rest).expanduser())
    raise DataError(
        f"there is no split {task.eval_split!r}: the source is one set of rows",
        where=f"task {task.name!r}: {task.source}",
        fix="leave eval_split out (eval_share of the rows is held out), or write {split} in the path",
    )


def _label_names(task: TaskConfig, table: Table) -> tuple[str, ...]:
    if task.kind != "classification":
        return ()
    if task.labels is not None or table.label_names is not None:
        return task.labels or table.label_names or ()
    return labels.label_set(table.columns[task.label], f"{table.where}, column {task.label!r}")


def _split(
    task: TaskConfig, table: Table, names: tuple[str, ...], columns: Sequence[str], part: str, notes: list[str], cache: Path
) -> RawSplit:
    """Texts or images and labels of all rows that have one; the others are counted in ``notes``."""
    texts: tuple[tuple[str, ...], ...] = ()
    images: tuple[Content, ...] = ()
    if task.image is None:
        filled, texts = _filled(task, table, part, notes)
    else:
        filled, images = pictures.usable(table, task.image, part, cache, notes)
    extra = {name: _column(table, name, filled) for name in columns}
    return RawSplit(texts, _targets(task, table, names, filled), extra, images, _marks(task, table, filled))


def _marks(task: TaskConfig, table: Table, rows: Sequence[int]) -> Marks:
    groups = numbered(_present(table, task.group, rows, "a question has no candidates without it")) if task.group else None
    made = FORMS[task.form].columns if task.form else ()
    worth = np.array([float(table.columns["worth"][i]) for i in rows]) if "worth" in made else None
    references = tuple(table.columns["references"][i] for i in rows) if "references" in made else ()
    return Marks(groups, worth, references)


def _filled(task: TaskConfig, table: Table, part: str, notes: list[str]) -> tuple[list[int], tuple[tuple[str, ...], ...]]:
    """(rows, texts) of all rows in which at least one text column (for generation: and the response) says something."""
    for name in task.columns:
        _check_text(table, name)
    texts = list(zip(*([text or "" for text in table.columns[name]] for name in task.columns), strict=True))
    asked = len(task.columns) - (task.kind == "generation")
    with_text = [i for i, row in enumerate(texts) if any(text.strip() for text in row[:asked])]
    filled = [i for i in with_text if task.kind != "generation" or texts[i][-1].strip()]
    for n, missing in ((len(texts) - len(with_text), "text"), (len(with_text) - len(filled), "response")):
        if n:
            notes.append(f"{part}: {n:,} rows without {missing} dropped")
    if not filled:
        fix = "give it rows with a text, or leave the task out"
        raise DataError(f"no row has a text in column {' or '.join(task.columns)}", where=table.where, fix=fix)
    return filled, tuple(_texts(task, texts[i]) for i in filled)


def _texts(task: TaskConfig, row: tuple[str, ...]) -> tuple[str, ...]:
    """As they are, or (instruction, context, response) where there is no column of contexts."""
    return (row[0], "", row[1]) if task.kind == "generation" and not task.context else row


def _targets(
    task: TaskConfig, table: Table, names: tuple[str, ...], rows: Sequence[int]
) -> NDArray[np.int64] | NDArray[np.float64]:
    if task.kind == "generation":
        return np.zeros(len(rows))
    numbers, where = [table.number(i) for i in rows], f"{table.where}, column {task.label!r}"
    values = [table.columns[task.label][i] for i in rows]
    return labels.targets(values, numbers, where) if task.kind == "regression" else labels.classes(values, names, numbers, where)


def _check_text(table: Table, name: str) -> None:
    for i, value in enumerate(table.columns[name]):
        if value is not None and not isinstance(value, str):
            what = f"column {name!r} holds {type(value).__name__}, not text: {str(value)[:60]!r}"
            raise DataError(what, where=f"{table.where}, row {table.number(i)}", fix="check the task's text columns")


def _column(table: Table, name: str, rows: Sequence[int]) -> NDArray[np.str_]:
    return np.array(_present(table, name, rows, "a partition by column needs it"), dtype=np.str_)


def _present(table: Table, name: str, rows: Sequence[int], fix: str) -> list[str]:
    """The values as labels are compared."""
    values = table.columns[name]
    for i in rows:
        if labels.is_null(values[i]):
            raise DataError(f"column {name!r} is empty", where=f"{table.where}, row {table.number(i)}", fix=fix)
    return [labels.key(values[i]) for i in rows]


def _hold_out(task: TaskConfig, rows: RawSplit, seed: int, notes: list[str]) -> tuple[RawSplit, RawSplit]:
    units = rows.marks.units(len(rows))
    n = len(units)
    held = round(n * task.eval_share)
    what = "rows" if rows.marks.groups is None else "questions"
    if not 0 < held < n:
        what = f"{n} {what} cannot be split into training and evaluation with eval_share = {task.eval_share}"
        raise DataError(what, where=f"task {task.name!r}", fix="give it more rows, or change eval_share")
    order = numpy_generator(seed, "hold-out", task.name).permutation(n)
    notes.append(f"evaluation: {held:,} of {n:,} training {what} held out (seed {seed})")
    return rows.take(joined([units[i] for i in order[held:]])), rows.take(joined([units[i] for i in order[:held]]))


def _subset(rows: RawSplit, most: int | None, seed: int, salt: tuple[str, str], notes: list[str]) -> RawSplit:
    n = len(rows)
    if most is None or n <= most:
        return rows
    units = rows.marks.units(n)
    order = numpy_generator(seed, "subset", *salt).permutation(len(units))
    fits = np.cumsum([len(units[i]) for i in order]) <= most
    fits[0] = True  # a question is never cut
    chosen = joined([units[i] for i in order[fits]])
    what = f"{len(chosen):,} of {n:,} rows" if rows.marks.groups is None else f"{int(fits.sum()):,} of {len(units):,} questions"
    notes.append(f"{salt[1]}: a random {what} (seed {seed})")
    return rows.take(chosen)
