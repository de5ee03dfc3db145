"""Ctrl-C and SIGTERM during training: it ends between two steps, with the command that continues it.

Between two steps and not at once: an exception that a signal raises inside foreign code may come out as another one, or not at all
(a ``__del__``, an extension that asks whether an attribute exists), and then training would go on from something half done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fedquilt.cli.progress import make_progress
from fedquilt.errors import FedquiltError
from fedquilt.runs.progress import Progress


class Interrupted(FedquiltError):
    """Ctrl-C during training."""

    exit_code = 130


class Terminated(Interrupted):
    """SIGTERM during training: a scheduler's way to ask for the machine."""

    exit_code = 143


KINDS = {signal.SIGINT: (Interrupted, "interrupted"), signal.SIGTERM: (Terminated, "terminated")}


class Stoppable:
    """A Progress that ends training when a signal has asked for it: every step passes here.

    Before the first step and after the last, and when it is asked again, the signal acts at once.
    """

    def __init__(self, inner: Progress, folder: Path) -> None:
        self._inner, self._folder = inner, folder
        self._training = False
        self.asked: signal.Signals | None = None

    def ask(self, number: int, _: FrameType | None = None) -> None:
        """The signal handler."""
        again, self.asked = self.asked is not None, signal.Signals(number)
        if again or not self._training:
            self.check()

    def check(self) -> None:
        """Raise if a signal came.

        Raises:
            Interrupted, Terminated: with the command that continues.
        """
        if self.asked is not None:
            kind, what = KINDS[self.asked]
            again = f"fedquilt resume {self._folder}" if (self._folder / "config.toml").exists() else "run it again"
            raise kind(what, where=str(self._folder), fix=again)

    def start(self, total: int, text: str) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self._inner.start(total, text)
        self._training = True

    def advance(self, amount: int = 1, text: str = "") -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self.check()
        self._inner.advance(amount, text)

    def line(self, text: str) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self._inner.line(text)
        self.check()

    def stop(self) -> None:
        """See :class:`fedquilt.runs.progress.Progress`."""
        self._training = False
        self._inner.stop()
        self.check()


@contextmanager
def resumable(folder: Path) -> Iterator[Progress]:
    """Training in ``folder``; gives the progress that it must report to.

    Raises:
        Interrupted, Terminated: a signal came.
    """
    say = Stoppable(make_progress(), folder)
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield say
        return
    # Ignored is what a process started in the background of a script inherits, and it stays ignored.
    taken = {number: handler for number in KINDS if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, say.ask)
    try:
        yield say
    except Exception:
        say.check()  # what a signal raised in foreign code may have become another exception there
        raise
    finally:
        for number, handler in taken.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
