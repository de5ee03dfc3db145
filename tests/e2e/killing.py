"""Kill a running ``fedquilt run`` with SIGKILL again and again, resume it every time, and look at what is left.

``python tests/e2e/killing.py [--kills N] [--seed S]`` does it for two methods and prints the counts; see ``scripts/kill_test``.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from door import COMMAND, committed, differences, result, write_config
from forks import Fork

from fedquilt.cli import main as command_line
from fedquilt.runs.store import Store, read_manifest

ROUNDS = 30
DROPOUT: dict[str, Any] = {"model": {"dropout": 0.1}, "method": {"steps": 3}}
CASES: dict[str, dict[str, Any]] = {
    "fltac": {**DROPOUT, "adapter": {"dropout": 0.1, "head": "private"}},
    "fedit": {**DROPOUT, "adapter": {"dropout": 0.1}},
}
PHASES = ("start", "training", "state", "journal", "export")
DECK = ("start",) * 2 + ("training",) * 3 + ("state",) * 2 + ("journal",) * 2 + ("export",)
PATIENCE = 300.0


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    """Kills that hit a running process, by phase."""
    missed: int = 0
    """The process had just ended by itself."""
    finished: int = 0
    """Runs that were completed and compared."""
    unloadable: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def hits(self) -> int:
        """Kills of a running process."""
        return sum(self.kills.values())

    @property
    def good(self) -> bool:
        """Nothing was lost."""
        return not self.unloadable and not self.different

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {self.kills[name]}" for name in PHASES)
        end = f"{self.finished} runs completed, {len(self.different)} with other bits, {len(self.unloadable)} unloadable states"
        return f"{self.hits} kills of a running process ({phases}), {self.missed} missed; {end}"


class Child(Protocol):
    """A process that can be killed."""

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        ...

    def wait(self, timeout: float) -> int | None:
        """The exit code when it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...


Launch = Callable[[Sequence[str], Path], Child]


def process(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The command as a user starts it."""
    with log.open("ab") as out:
        return subprocess.Popen([*COMMAND, *words], stdout=out, stderr=out)


def fork(words: Sequence[str], log: Path) -> Fork:
    """The same without a new interpreter."""
    with log.open("ab") as out:
        return Fork(command_line, words, out=out)


def until(child: Child, ready: Callable[[], bool]) -> None:
    """Until ``ready()`` or the end of the process."""
    end = time.monotonic() + PATIENCE
    while child.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.0005)


def ahead(run: Path) -> bool:
    """Whether a journal is longer than the manifest says."""
    manifest = read_manifest(run)
    lengths = manifest["generations"][0]["lengths"] if manifest else {}
    return any((run / name).stat().st_size > length for name, length in lengths.items())


@dataclass
class Killer:
    """Interrupts runs of one configuration.

    Args:
        reference: the bytes of a run that nobody interrupted.
    """

    launch: Launch
    config: Path
    reference: dict[str, bytes]
    stream: random.Random
    rounds: int
    first_commit: float  # seconds after the start of a process; the least seen so far
    tally: Tally = field(default_factory=Tally)
    deck: list[str] = field(default_factory=list)

    def interrupt(self, kills: int, folder: Path) -> None:
        """Start runs, kill and resume them until so many kills have hit, and let the last one finish."""
        number = 0
        while self.tally.hits < kills:
            number += 1
            run = folder / f"run-{number}"
            while self.tally.hits < kills and not self.attempt(run):
                pass
            if self.tally.hits >= kills:
                self.begin(run).wait(PATIENCE)
            self.compare(run)

    def begin(self, run: Path) -> Child:
        """A process that begins or continues the run, the way its message said."""
        words = ["resume", str(run)] if (run / "config.toml").exists() else ["run", str(self.config), "--dir", str(run)]
        return self.launch(words, run.parent / f"{run.name}.log")

    def attempt(self, run: Path) -> bool:
        """One start and one kill; True if the run ended by itself before."""
        if not self.deck:  # shuffled like cards, so that few kills are spread too
            self.deck = self.stream.sample(DECK, len(DECK))
        phase = self.deck.pop()
        child = self.begin(run)
        self.wait(child, run, phase)
        child.kill()
        code = child.wait(PATIENCE)
        if code == -signal.SIGKILL:
            self.tally.kills[phase] += 1
        else:
            self.tally.missed += 1
        self.check(run)
        if code not in (0, -signal.SIGKILL):
            self.tally.different.append(f"{run.name}: exit code {code}, see {run.name}.log")
        return code != -signal.SIGKILL

    def wait(self, child: Child, run: Path, phase: str) -> None:
        """Until the random instant of the kill, or the end of the process."""
        begin, first = time.monotonic(), committed(run)
        if phase == "start":
            time.sleep(self.stream.uniform(0, self.first_commit))
        elif phase == "training":  # anywhere in a round, some rounds on
            after = min(first + self.stream.randint(1, 5), self.rounds)
            until(child, lambda: committed(run) >= after)
            self.first_commit = min(self.first_commit, time.monotonic() - begin)
            time.sleep(self.stream.uniform(0, 0.08))
        elif phase == "state":  # a file of the next state is there, the manifest does not name it yet
            after = min(max(first, 0) + self.stream.randint(1, 4), self.rounds)
            until(child, lambda: any((run / "state").glob(f"*-{after:06d}.safetensors*")))
            time.sleep(self.stream.uniform(0, 0.005))
        elif phase == "journal":  # the next lines are there, the manifest does not count them yet
            after = min(max(first, 0) + self.stream.randint(0, 3), self.rounds - 1)
            until(child, lambda: committed(run) >= after and ahead(run))
        else:
            until(child, lambda: committed(run) == self.rounds)
            time.sleep(self.stream.uniform(0, 0.1))

    def check(self, run: Path) -> None:
        """Whatever is there must load, newest generation and all."""
        try:
            Store(run).load(strict=True)
        except Exception as error:  # noqa: BLE001 - anything at all is what this looks for
            self.tally.unloadable.append(f"{run.name}: {error!r}")

    def compare(self, run: Path) -> None:
        """A completed run against the undisturbed one."""
        self.tally.finished += 1
        other = differences(result(run), self.reference)
        if other:
            self.tally.different.append(f"{run.name}: {', '.join(other)}")


def kill_method(name: str, kills: int, seed: int, folder: Path, launch: Launch = process, rounds: int = ROUNDS) -> Tally:
    """``kills`` kills of runs of one of the CASES."""
    config = write_config(folder, name, rounds=rounds, **CASES[name])
    whole = folder / "whole"
    launch(["--version"], folder / "version.log").wait(PATIENCE)  # a fork server imports now
    begin = time.monotonic()
    child = launch(["run", str(config), "--dir", str(whole)], folder / "whole.log")
    until(child, lambda: committed(whole) >= 0)
    first_commit = time.monotonic() - begin
    child.wait(PATIENCE)
    killer = Killer(launch, config, result(whole), random.Random(f"{seed} {name}"), rounds, first_commit)
    killer.interrupt(kills, folder)
    return killer.tally


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=32, help="in all, half of them for each method")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    good = True
    for name in CASES:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            tally = kill_method(name, (given.kills + 1) // len(CASES), given.seed, Path(folder))
        print(f"{name}: {tally}  [{time.monotonic() - begin:.0f} s]", flush=True)
        for line in (*tally.unloadable, *tally.different):
            print(f"  {line}")
        good = good and tally.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
