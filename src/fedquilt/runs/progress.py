"""How a run tells a person where it is. The command line brings the implementations; a library call is silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One bar at a time plus lines of text. Calls come from one thread."""

    def start(self, total: int, text: str) -> None:
        """Begin a bar of ``total`` steps; a bar that is still running ends first."""
        ...

    def advance(self, amount: int = 1, text: str = "") -> None:
        """``amount`` more steps are done; ``text`` replaces what stands beside the bar (empty keeps it).

        Also called with 0, between passes that are no steps: what is raised here ends a run at a place where nothing is half done.
        """
        ...

    def line(self, text: str) -> None:
        """Say one thing now, bar or no bar."""
        ...

    def stop(self) -> None:
        """End the bar. Harmless when there is none, so it can stand in a ``finally``."""
        ...


class Silent:
    """Says nothing."""

    def start(self, total: int, text: str) -> None:
        """Nothing."""

    def advance(self, amount: int = 1, text: str = "") -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
