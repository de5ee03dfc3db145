"""Real data sets for tests that have a use for them; not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(needed: str) -> Path:
    """The folder that holds the file ``needed``; the test is skipped where there is none."""
    given = os.environ.get("FEDQUILT_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / needed).is_file():
        pytest.skip(f"no real data: set FEDQUILT_DATA to a folder with {needed}")
    return folder
