"""Files that are there whole or not at all, and are what they were."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from fedquilt.errors import StateError


def write_atomic(path: Path, data: bytes) -> str:
    """Write through a temporary file, fsync, rename, fsync the folder; returns the SHA-256."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk the half file would be in the way
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return hashlib.sha256(data).hexdigest()


def read(path: Path, digest: str) -> bytes:
    """The content.

    Raises:
        StateError: it cannot be read, or its SHA-256 is another.
    """
    with _reading(path) as handle:
        data = handle.read()
    _compare(path, hashlib.sha256(data).hexdigest(), digest)
    return data


def check(path: Path, digest: str) -> None:
    """Read a file through, without keeping it.

    Raises:
        StateError: it cannot be read, or its SHA-256 is another.
    """
    with _reading(path) as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    _compare(path, found, digest)


@contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as handle:
            yield handle
    except OSError as error:
        raise StateError(f"cannot read {path.name}", where=str(path), why=error.strerror or str(error)) from error


def _compare(path: Path, found: str, digest: str) -> None:
    if found != digest:
        raise StateError(f"{path.name} is corrupt", where=str(path), why="its SHA-256 is not the one in hub.json")
