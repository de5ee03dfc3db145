"""What a process died of, by what it has said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

ERROR = re.compile(r"(error: |([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception|Exit)\b)")  # ours, or the end of a traceback


def last_error(said: Sequence[str], otherwise: int) -> str:
    """The last error of a log, until Flower speaks again in its colours; without one so many of its last lines."""
    begins = [number for number, line in enumerate(said) if ERROR.match(line)]
    own = takewhile(lambda line: line and not line.startswith("\033"), said[begins[-1] :]) if begins else said[-otherwise:]
    return "\n".join(own).strip()
