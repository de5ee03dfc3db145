"""Progress for people: a bar with an estimate of the rest on a terminal, dated lines in a log file.

Both go to stderr: stdout is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from fedquilt.runs.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

EVERY = 30.0  # seconds between two lines about a bar in a log file


def make_progress() -> Progress:
    """The right one for where stderr goes."""
    return Bar() if sys.stderr.isatty() else Lines()


class Bar:
    """A rich progress bar; lines are printed above it."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console as RichConsole

        self._console = console or RichConsole(stderr=True, highlight=False)
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, total: int, text: str) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.stop()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Slots take unequal time: a long window keeps the estimate from jumping.
        self._bar = RichProgress(*columns, console=self._console, speed_estimate_period=120)
        self._task = self._bar.add_task(text, total=total)
        self._bar.start()

    def advance(self, amount: int = 1, text: str = "") -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, description=text or None)

    def line(self, text: str) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def stop(self) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


class Lines:
    """Dated lines; one about the bar at most every ``every`` seconds."""

    def __init__(self, stream: TextIO | None = None, *, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every, self._clock = stream, every, clock
        self._total = self._done = 0
        self._text = ""
        self._began = self._told = 0.0

    def start(self, total: int, text: str) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self._total, self._done, self._text = total, 0, text
        self._began = self._told = self._clock()
        self.line(f"{text}: {total:,} steps")

    def advance(self, amount: int = 1, text: str = "") -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self._done += amount
        self._text = text or self._text
        now = self._clock()
        if self._total and now - self._told >= self._every:
            self._told = now
            share = self._done / self._total
            left = f", about {_minutes((now - self._began) * (1 / share - 1))} left" if share else ""
            self.line(f"{self._text}: {self._done:,} of {self._total:,} ({share:.0%}){left}")

    def line(self, text: str) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        stamp = datetime.now().strftime("%H:%M:%S")
        print(f"{stamp} {text}", file=self._stream or sys.stderr, flush=True)

    def stop(self) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self._total = 0


def _minutes(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
