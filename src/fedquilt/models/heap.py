"""Memory that was freed and that the C library has kept, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

SLACK = 3 << 29  # bytes; what less of it costs is in docs/decisions/024-heap.md


class Heap:
    """Keeps what a process holds near what it uses.

    Passes differ in size, and a block that one has freed seldom fits the next: under glibc a process grows for hundreds of passes,
    to several times what one keeps. Giving all of it back takes a tenth of a second per GB, which is why it waits for ``slack``
    bytes more than there were at the start or the last time. Where the system does not say what is held, or the C library has no
    way to give anything back (macOS, Windows, musl), nothing is done.
    """

    def __init__(self, slack: int = SLACK) -> None:
        self.slack = slack
        self.floor = held()

    def settle(self) -> bool:
        """To be called between passes. Whether anything was given back."""
        trim, now = trimmer(), held()
        if trim is None or self.floor is None or now is None or now <= self.floor + self.slack:
            return False
        trim(0)
        self.floor = held()
        return True


def held() -> int | None:
    """Bytes of this process in memory; None where the system does not say so (Linux does)."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    import resource

    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@cache
def trimmer() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
