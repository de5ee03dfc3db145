"""What tests of whole programs share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(short: Path) -> Path:
    """Programs put sockets into it."""
    return short
