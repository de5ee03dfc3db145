"""TOML files that people write."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fedquilt.errors import ConfigError


def tables(data: bytes, path: Path, what: str) -> dict[str, Any]:
    """A file's tables; a byte-order mark, which some editors write, is none of them. ``what``: the file, in an error.

    Raises:
        ConfigError: it is not TOML in UTF-8.
    """
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8", where=str(path), why=str(error), fix="save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what} is not valid TOML", where=str(path), why=str(error), fix="see the line named above") from error
