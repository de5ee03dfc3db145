"""Signals during training: where they act, what they become, and what they leave behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fedquilt.cli.interrupt import Interrupted, Terminated, resumable
from fedquilt.runs.progress import Progress

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
pytestmark = pytest.mark.usefixtures("terminal")


def train(folder: Path, work: Callable[[Progress], None]) -> None:
    """Do the work as a command does."""
    with resumable(folder) as say:
        work(say)


def stopped(folder: Path, work: Callable[[Progress], None]) -> Interrupted:
    """How the work was ended by a signal."""
    with pytest.raises(Interrupted) as found:
        train(folder, work)
    return found.value


def steps(say: Progress, number: signal.Signals, reached: list[str]) -> None:
    """A signal during a step."""
    say.start(3, "x")
    say.advance()
    signal.raise_signal(number)
    reached.append("the end of the step")
    say.advance()
    reached.append("the next step")


@BOTH
def test_training_ends_between_two_steps(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    reached: list[str] = []
    stop = stopped(tmp_path, lambda say: steps(say, number, reached))
    assert (type(stop), stop.exit_code) == {signal.SIGINT: (Interrupted, 130), signal.SIGTERM: (Terminated, 143)}[number]
    assert f"fedquilt resume {tmp_path}" in str(stop)
    assert reached == ["the end of the step"]


@pytest.mark.parametrize("last", ["line", "stop", "advance"])
def test_whatever_the_run_tells_next_ends_it(last: str, tmp_path: Path) -> None:
    def work(say: Progress) -> None:
        say.start(3, "x")
        signal.raise_signal(signal.SIGINT)
        {"line": lambda: say.line("said"), "stop": say.stop, "advance": lambda: say.advance(0)}[last]()
        pytest.fail("went on")

    assert "run it again" in str(stopped(tmp_path, work))  # nothing was written yet


@BOTH
def test_asked_twice_it_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    def work(say: Progress) -> None:
        say.start(3, "x")
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)
        pytest.fail("went on")

    stopped(tmp_path, work)


@pytest.mark.parametrize("after", [False, True])
def test_outside_of_training_it_ends_at_once(after: bool, tmp_path: Path) -> None:
    def work(say: Progress) -> None:
        if after:
            say.start(3, "x")
            say.stop()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    stopped(tmp_path, work)


def test_an_interrupt_that_foreign_code_turned_into_another_error_is_an_interrupt(tmp_path: Path) -> None:
    def work(_: Progress) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except Interrupted:
            raise ValueError("could not determine the shape") from None

    stopped(tmp_path, work)


def test_an_error_without_a_signal_is_itself(tmp_path: Path) -> None:
    def work(_: Progress) -> None:
        raise ValueError("other")

    with pytest.raises(ValueError, match="other"):
        train(tmp_path, work)


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reached: list[str] = []
    train(tmp_path, lambda say: steps(say, signal.SIGINT, reached))
    assert reached == ["the end of the step", "the next step"]
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_outside_of_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    done: list[str] = []

    def work(say: Progress) -> None:
        say.start(1, "x")
        done.append("started")

    thread = threading.Thread(target=train, args=(tmp_path, work))
    thread.start()
    thread.join()
    assert done == ["started"]
