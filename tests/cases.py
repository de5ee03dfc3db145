"""Cases that the fast suite leaves to the slow one."""

from __future__ import annotations

from typing import Any

import pytest


def slow_unless(quick: bool, *values: object) -> Any:
    """A case for ``parametrize``, marked slow unless ``quick``."""
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)
