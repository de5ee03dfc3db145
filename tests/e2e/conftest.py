"""What tests of whole programs share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short name: the path of a worker's socket has at most 100 bytes, and pytest's own folders have the test's name."""
    return tmp_path_factory.mktemp("t")
