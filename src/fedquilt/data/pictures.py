"""Columns and folders of images, before any model: what is there, and which of it can be used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from fedquilt.data.files import replacing
from fedquilt.data.tables import Table
from fedquilt.data.transform import Content, Unusable, decode, digest, strict
from fedquilt.errors import DataError

_FORMAT = "1"


def read_folder(path: Path, image: str, label: str) -> Table:
    """A folder with one sub-folder of images per class, as columns ``image`` (paths) and ``label``; hidden entries are not read.

    Raises:
        DataError: there is no such folder, or fewer than two classes in it.
    """
    where = str(path)
    check_folder(path)
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [(file, folder.name) for folder in classes for file in _files(folder)]
    if len(classes) < 2 or not files:
        fix = "one sub-folder of images per class: FOLDER/cat/1.jpg, FOLDER/dog/1.jpg"
        raise DataError(f"{len(classes)} classes with {len(files)} files in the image folder", where=where, fix=fix)
    columns: dict[str, list[Any]] = {image: [file for file, _ in files], label: [name for _, name in files]}
    return Table(columns, where, tuple(folder.name for folder in classes))


def check_folder(path: Path) -> None:
    """Whether there is such a folder.

    Raises:
        DataError: there is none.
    """
    if not path.is_dir():
        fix = "check the path; {split} in it stands for the split's name"
        raise DataError("there is no such folder", where=str(path), fix=fix)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def usable(table: Table, column: str, part: str, cache: Path, notes: list[str]) -> tuple[list[int], tuple[Content, ...]]:
    """(row numbers, images) of the rows whose image can be decoded; what is left out is counted in ``notes``.

    Every image is decoded once for this; the outcome is kept in the cache.

    Raises:
        DataError: the column holds something else than images, or none of them can be used.
    """
    where = f"{table.where}, column {column!r}"
    found = {i: content for i, value in enumerate(table.columns[column]) if (content := _content(value, i, where)) is not None}
    contents = tuple(found.values())
    bad = _faults(contents, cache)
    rows = list(found)
    reasons = {rows[i]: reason for i, reason in bad.items()}
    reasons |= dict.fromkeys(set(range(len(table))) - set(rows), "there is no image")
    kept = [i for i in rows if i not in reasons]
    if reasons:
        notes.append(f"{part}: {_told(reasons)}")
    if not kept:
        why = _told(reasons) if reasons else "it has no rows"
        raise DataError("no row has an image that can be used", where=where, why=why, fix="check the column, or leave the task out")
    return kept, tuple(found[i] for i in kept)


def _content(value: Any, row: int, where: str) -> Content | None:
    """The image of one row: bytes, a path, or what ``datasets`` makes of either; None where there is none."""
    if isinstance(value, dict) and {"bytes", "path"} >= set(value):
        value = value.get("bytes") or (Path(value["path"]) if value.get("path") else None)
    if value is None or value == b"":
        return None
    if isinstance(value, bytes) or (isinstance(value, Path) and value.is_file()):
        return value
    if isinstance(value, Path):
        return None
    kind = type(value).__name__
    fix = "give the column that holds the bytes of image files (image = '...'), or a folder: source = 'folder:PATH/{split}'"
    raise DataError(f"{kind} is no image", where=f"{where}, row {row + 1}", fix=fix)


def _faults(contents: tuple[Content, ...], cache: Path) -> dict[int, str]:
    """Position -> reason of the images that cannot be used."""
    path = cache / "pixels" / f"{digest(contents, _FORMAT, 'faults')}.json"
    try:
        return {int(i): str(reason) for i, reason in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        with strict():
            found = {i: reason for i, content in enumerate(contents) if (reason := _fault(content))}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found


def _fault(content: Content) -> str:
    try:
        decode(content)
    except Unusable as error:
        return str(error)
    return ""


def _told(reasons: dict[int, str]) -> str:
    """``3 images left out: 2 cannot be read as an image (first: row 7), 1 above 50,000,000 pixels (first: row 9)``."""
    counts = Counter(reasons.values())
    first = {reason: min(row for row, why in reasons.items() if why == reason) + 1 for reason in counts}
    parts = [f"{n:,} {reason} (first: row {first[reason]})" for reason, n in sorted(counts.items())]
    return f"{len(reasons):,} images left out: {', '.join(parts)}"
