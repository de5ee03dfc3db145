"""Files that appear whole or not at all, and the cache folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedquilt.errors import StateError


def default_cache() -> Path:
    """``$FEDQUILT_CACHE``, else ``$XDG_CACHE_HOME/fedquilt``, else ``~/.cache/fedquilt``; not created here."""
    if chosen := os.environ.get("FEDQUILT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedquilt"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` when the block ends well and is removed otherwise.

    Raises:
        StateError: the folder cannot be written (full, read-only).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        temporary.touch(exist_ok=False)  # not mkstemp: others may read what the user's umask lets them
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> StateError:
    fix = "choose another folder, one that you may write to, or free space in this one"
    return StateError(f"cannot write {path.name}", where=str(path.parent), why=error.strerror or str(error), fix=fix)
