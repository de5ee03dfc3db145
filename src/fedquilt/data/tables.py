"""Rows of one split as plain columns, from a local file or from the hub. The only user of ``pyarrow`` and ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedquilt.errors import DataError, did_you_mean

Values = list[Any]
_LINES = 'write one object on each line, such as {"text": "...", "label": "..."}'


@dataclass(frozen=True)
class Table:
    """Columns of equal length, with what an error message has to say about their origin."""

    columns: Mapping[str, Values]
    where: str
    label_names: tuple[str, ...] | None = None
    """The names of an integer label column, when the source knows them."""
    rows: tuple[int, ...] | None = None
    """The numbers of the rows in their source, from 1, where some were left out."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def number(self, i: int) -> int:
        """The number of row ``i`` in its source, from 1, for messages."""
        return i + 1 if self.rows is None else self.rows[i]

    def take(self, rows: Sequence[int]) -> Table:
        """The given rows, which keep their numbers."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return Table(columns, self.where, self.label_names, tuple(self.number(i) for i in rows))


def pick(names: Sequence[str], wanted: Sequence[str], where: str) -> list[str]:
    """``wanted`` without repeats.

    Raises:
        DataError: one of them is not among ``names``.
    """
    for name in wanted:
        if name not in names:
            fix = _separated(names[0], where) if len(names) == 1 else ""
            raise DataError(f"there is no column {name!r}", where=where, fix=fix or did_you_mean(name, names))
    return list(dict.fromkeys(wanted))


def check_file(path: Path) -> None:
    """Whether there is such a file, with something in it.

    Raises:
        DataError: there is none, or it is empty.
    """
    if not path.is_file():
        raise DataError("there is no such file", where=str(path), fix=_neighbours(path))
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path), fix="give it a header and rows, or leave the task out")


def _separated(header: str, where: str) -> str:
    """How to go on where a header of one column looks like several; nothing where it does not."""
    wanted = "a tab" if where.endswith(".tsv") else "a comma"
    for mark, said in ((";", "a semicolon"), ("\t", "a tab"), ("|", "a bar"), (",", "a comma")):
        if mark in header and said != wanted:
            other = "; tabs: name the file .tsv" if mark == "\t" else ""
            return f"the columns seem to be parted by {said}, not by {wanted}: save the file with {wanted} between them{other}"
    return ""


def read_file(path: Path, wanted: Sequence[str] | None, texts: Sequence[str]) -> Table:
    """Read the ``wanted`` columns (None: all) of a csv, tsv, jsonl, parquet or arrow file; those in ``texts`` stay text ("007" is
    no number).

    Raises:
        DataError: the file is missing, damaged, not UTF-8, empty, or lacks a column.
    """
    import pyarrow as pa

    where = str(path)
    check_file(path)
    try:
        if path.suffix == ".jsonl":
            return Table(_read_jsonl(path, wanted), where)
        table = _read_table(path, wanted, texts)
        names = table.column_names if wanted is None else pick(table.column_names, wanted, where)
        return Table({name: table.column(name).to_pylist() for name in names}, where)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError("the file cannot be read", where=where, why=str(error), fix=_mended(path, str(error))) from error


def _mended(path: Path, why: str) -> str:
    """How to go on with a file that cannot be read."""
    if "utf" in why.lower():
        return "save the file as UTF-8"
    if path.suffix not in (".csv", ".tsv"):
        return "is it whole, and of the format that its name says? Write it anew"
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        hint = _separated(next(lines, "").strip(), str(path)) if "columns" in why else ""
    mark = "tabs" if path.suffix == ".tsv" else "commas"
    return (
        hint or f'every row needs as many columns as the header: put texts with {mark} in double quotes, and write " in them as ""'
    )


def _read_table(path: Path, wanted: Sequence[str] | None, texts: Sequence[str]) -> Any:
    if path.suffix == ".parquet":
        return _read_parquet(path, wanted)
    return _read_arrow(path) if path.suffix == ".arrow" else _read_csv(path, texts)


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    return did_you_mean(path.name, sorted(entry.name for entry in folder.iterdir())[:30])


def _read_csv(path: Path, texts: Sequence[str]) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    # One block: a row longer than a block is an error, and one text may be larger than the default of 1 MiB.
    block = min(max(path.stat().st_size + 1, 1 << 20), (1 << 31) - 1)
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(block_size=block, use_threads=False),  # errors name the row only so
        parse_options=csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True),
        # Only an empty field is null: "NA", "null" and "nan" are words.
        convert_options=csv.ConvertOptions(
            column_types={name: pa.string() for name in texts}, null_values=[""], strings_can_be_null=True
        ),
    )


def _read_parquet(path: Path, wanted: Sequence[str] | None) -> Any:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    return file.read(columns=None if wanted is None else pick(file.schema_arrow.names, wanted, str(path)))


def _read_arrow(path: Path) -> Any:
    """Both formats are called .arrow: ``datasets`` writes the stream format, most others the file format."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        return opened.read_all()


def _read_jsonl(path: Path, wanted: Sequence[str] | None) -> dict[str, Values]:
    rows: list[dict[str, Any]] = []
    seen: dict[str, None] = {}
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError("the line is not JSON", where=f"{path}, line {number}", why=str(error), fix=_LINES) from error
            if not isinstance(row, dict):
                raise DataError("the line is not a JSON object", where=f"{path}, line {number}", fix=_LINES)
            seen.update(dict.fromkeys(row))
            rows.append(row if wanted is None else {name: row.get(name) for name in wanted})
    names = list(seen) if wanted is None else pick(list(seen), wanted, str(path))
    return {name: [row.get(name) for row in rows] for name in names}


def read_hub(
    repo: str, config: str | None, split: str, wanted: Sequence[str] | None, label: str, image: str | None = None
) -> Table:
    """Read the ``wanted`` columns (None: all) of one split of a hub data set; its local cache is used when it cannot be reached.

    Images of the column ``image`` stay encoded: ``{"bytes": ..., "path": ...}``.

    Raises:
        DataError: no such data set, configuration, split or column, or neither network nor cache.
    """
    import datasets

    where = f"hub:{repo}" + (f":{config}" if config else "") + f", split {split}"
    try:
        data = datasets.load_dataset(repo, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # Unknown repository, configuration or split, and a missing network, are all subclasses of these.
        raise DataError(
            "the data set cannot be loaded from the hub",
            where=where,
            why=f"{type(error).__name__}: {error}",
            fix="check the names; without a network give a local copy: source = 'file:FOLDER/{split}.parquet'",
        ) from error
    names = data.column_names if wanted is None else pick(data.column_names, wanted, where)
    if image is not None and isinstance(data.features[image], datasets.Image):
        data = data.cast_column(image, datasets.Image(decode=False))
    label_names = getattr(data.features.get(label), "names", None)
    return Table({name: list(data[name]) for name in names}, where, tuple(label_names) if label_names else None)
