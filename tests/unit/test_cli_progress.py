"""Progress on a terminal and in a log file."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from fedquilt.cli.progress import Bar, Lines, make_progress
from fedquilt.runs.progress import Progress, Silent


class Clock:
    """Seconds that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(stream: io.StringIO) -> list[str]:
    """The lines without their time of day."""
    return [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]


def test_lines_tell_the_rest_from_the_pace_so_far() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, every=30, clock=clock)
    lines.start(1000, "glue")
    clock.now += 30
    lines.advance(0)  # an evaluation before the first step: no pace yet
    clock.now -= 20
    lines.advance(50)  # too early for a line
    clock.now += 50
    lines.advance(150, "round 2")  # a fifth in 60 s: four times as long to go
    clock.now += 20
    lines.advance(100)  # 20 s after the last line
    clock.now += 10
    lines.advance(500)  # 80 % in 90 s
    assert told(stream) == [
        "glue: 1,000 steps",
        "glue: 0 of 1,000 (0%)",
        "round 2: 200 of 1,000 (20%), about 4 min left",
        "round 2: 800 of 1,000 (80%), about 22 s left",
    ]


def test_lines_are_dated_and_stay_quiet_after_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, every=1, clock=clock)
    lines.start(2, "x")
    lines.stop()
    lines.stop()
    clock.now += 50
    lines.advance()
    lines.line("done")
    assert told(stream) == ["x: 2 steps", "done"]
    assert stream.getvalue()[2] == stream.getvalue()[5] == ":"


def test_a_bar_shows_count_text_and_lines_above_it() -> None:
    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=100, color_system=None))
    bar.start(4, "[1] first")
    bar.advance(3, "second")
    bar.line("round 1/4  loss [0.5]")
    bar.advance()
    bar.stop()
    bar.stop()
    text = stream.getvalue()
    assert "round 1/4  loss [0.5]" in text
    assert "second" in text
    assert "4/4" in text


def test_a_bar_that_was_not_started_can_be_used() -> None:
    stream = io.StringIO()
    bar = Bar(Console(file=stream))
    bar.advance()
    bar.line("hello")
    bar.stop()
    assert stream.getvalue() == "hello\n"


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bar), (False, Lines)])
def test_a_terminal_gets_a_bar(terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert isinstance(make_progress(), kind)


def test_silence() -> None:
    quiet: Progress = Silent()
    quiet.start(1, "x")
    quiet.advance(1, "y")
    quiet.line("z")
    quiet.stop()
