"""Run and resume: the only two ways into training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedquilt.clock import Drive
from fedquilt.data.partition import Partition, refuse_own
from fedquilt.engine.base import Engine
from fedquilt.errors import ConfigError, StateError
from fedquilt.meter import Meter
from fedquilt.method import Method
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.build import Built, build, set_threads
from fedquilt.runs.config import RunConfig, load_config, parse
from fedquilt.runs.env import read_env, refuse_other, write_env
from fedquilt.runs.points import Sketch, records
from fedquilt.runs.progress import Progress, Silent
from fedquilt.runs.store import ADAPTERS, Store, begun, locked, writing
from fedquilt.runs.summary import write_summary
from fedquilt.types import Hub, Updates


def own_engine(built: Built) -> Engine:
    """The engine of the configuration."""
    refuse_own(built.config.partition)
    return built.engine


def refuse_method(given: object, where: str) -> None:
    """Raise where a method stands in the place of a name or of a configuration."""
    if isinstance(given, Method) or callable(given):
        name = given.name if isinstance(given, Method) else getattr(given, "__name__", repr(given))
        raise ConfigError(
            f"'{name}' is given as a method itself; only the registered name of one can be run",
            where=where,
            why="the configuration alone says what a run was, also to a resume and to other machines",
            fix='register the function that builds it under the entry points "fedquilt.methods" (docs/howto-plugin.md), '
            'and give its name: [method] name = "..."',
        )


def run(
    config: RunConfig | Path | str | Mapping[str, Any],
    *,
    directory: Path | str | None = None,
    progress: Progress | None = None,
    engine: Callable[[Built], Engine] = own_engine,
) -> Path:
    """Train, evaluate and export; returns the run directory.

    Args:
        config: a RunConfig, the path of a TOML file, or plain tables.
        directory: of the run; default ``runs/<name>``. Must not hold a run already.
        engine: what trains; default: the engine of the configuration.

    Raises:
        FedquiltError: see :mod:`fedquilt.errors`.
    """
    refuse_method(config, "fedquilt.run")
    if isinstance(config, Mapping):
        config = parse(dict(config), Path.cwd())
    elif not isinstance(config, RunConfig):
        config = load_config(config)
    folder = Path(directory) if directory else Path("runs") / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise StateError("cannot make the run directory", where=str(folder), why=why, fix="choose another --dir") from error
    with writing(folder), locked(folder):
        if begun(folder):
            raise StateError(
                "the run directory holds a run already",
                where=str(folder),
                fix=f"continue it (fedquilt resume {folder}), or choose another --dir or name",
            )
        return _start(config, folder, progress or Silent(), engine)


def resume(directory: Path | str, *, progress: Progress | None = None, engine: Callable[[Built], Engine] = own_engine) -> Path:
    """Continue an interrupted run to the same bits as if it had never stopped; a finished run is left as it is.

    Raises:
        StateError: no run there, corrupt, in use, or its configuration was edited.
    """
    folder = Path(directory)
    if not (folder / "config.toml").exists():
        fix = "check the path; what never got as far as training is started anew by fedquilt run"
        raise StateError("no run to resume", where=str(folder), why="there is no config.toml in it", fix=fix)
    say, begin = progress or Silent(), time.time()
    with writing(folder), locked(folder):
        config = load_config(folder / "config.toml")
        env = read_env(folder)
        if env["config"] != config.digest():
            raise StateError(
                "the configuration of this run was changed",
                where=str(folder / "config.toml"),
                why="its digest is not the one the run was started with",
                fix="undo the change, or start a new run",
            )
        if config.threads is None and env["threads"] != set_threads(config):
            say.line(f"warning: started with {env['threads']} threads; bits may differ. Set threads = {env['threads']}")
        saved = Partition.load(folder / "partition.json") if (folder / "partition.json").exists() else None
        built = build(config, saved=saved, progress=say, tick=say.advance)
        if saved is None:
            built.partition.save(folder / "partition.json")
        return _go(built, engine(built), folder, say, begin)


def _start(config: RunConfig, folder: Path, say: Progress, engine: Callable[[Built], Engine]) -> Path:
    begin = time.time()
    # Built before anything is written: what cannot be built would be left behind as a run that cannot be resumed.
    built = build(config, progress=say, tick=say.advance)
    trains = engine(built)
    (folder / "events.jsonl").unlink(missing_ok=True)
    write_env(built, folder)
    write_atomic(folder / "config.toml", config.to_toml().encode())
    built.partition.save(folder / "partition.json")
    return _go(built, trains, folder, say, begin)


def _go(built: Built, engine: Engine, folder: Path, say: Progress, begin: float) -> Path:
    """``begin``: when all of it began."""
    config = built.config
    store = Store(folder, every=config.checkpoint_every, last=config.rounds)
    loaded = store.load()
    hub, meter, books = built.program.init(built.adapter.init), Meter(built.adapter.spec), None
    engine.kept = store.clients
    if loaded is not None:
        hub, books, warnings = loaded
        refuse_other(built, hub, folder)
        for warning in warnings:
            say.line(f"warning: fell back to the round before\n{warning}")
    log = _Log(folder, config, say)
    log.event("resume" if loaded else "start", hub.step, time.time() - begin)
    try:
        final = _drive(built, engine, hub, store, meter, log, say).run(hub, books)
    finally:
        engine.close()
        say.stop()
    from fedquilt.runs.export import export_bank

    export_bank(built, built.seated(final), folder / ADAPTERS)
    log.event("end", final.step, 0.0)
    write_summary(built, folder, meter)
    return folder


def _drive(built: Built, engine: Engine, hub: Hub, store: Store, meter: Meter, log: _Log, say: Progress) -> Drive:
    config = built.config
    sketch = Sketch(config.seed)
    say.start(built.count_steps(hub.step + 1), config.name)

    def evaluate(after: Hub, number: int) -> dict[str, Any] | None:
        every, last = config.evaluation.every, number == config.rounds
        due = config.evaluation.start if number == 0 else last or (every > 0 and number % every == 0)
        if not due:
            return None
        begin = time.time()
        record = built.asked(after) if built.asked else built.evaluator(built.seated(after), engine, built.bank_is_complete)
        log.evaluated(number, time.time() - begin)
        return record

    def observe(number: int, updates: Updates | None, after: Hub) -> dict[str, list[dict[str, Any]]]:
        if built.program.client.choose and config.own:  # where slots are nobody here knows
            return {}
        return records(number, updates, built.seated(after), built.view, sketch)

    return Drive(
        built.program,
        engine,
        built.adapter.spec,
        store,
        meter,
        config.seed,
        config.rounds,
        observe=observe,
        evaluate=evaluate,
        notice=log.notice,
        fingerprint=built.fingerprint,
        quorum=config.quorum,
    )


class _Log:
    """Wall-clock events, whose seconds do not overlap, and a line per round for the person who waits."""

    def __init__(self, folder: Path, config: RunConfig, say: Progress) -> None:
        self.path, self.config, self.say, self.clock = folder / "events.jsonl", config, say, time.time()

    def event(self, kind: str, number: int, seconds: float) -> None:
        """Append one line; not part of the journal that a resume must reproduce."""
        line = {"time": time.time(), "event": kind, "round": number, "seconds": seconds}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def evaluated(self, number: int, seconds: float) -> None:
        """An evaluation; the round that it is in does not count it."""
        self.event("eval", number, seconds)
        self.clock += seconds

    def notice(self, number: int, summary: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
        """After every round."""
        now = time.time()
        if number:
            self.event("round", number, now - self.clock)
        self.clock = now
        parts = [f"round {number}/{self.config.rounds}"]
        if summary.get("loss") is not None:
            parts.append(f"loss {summary['loss']:.4f}")
        if summary.get("rejected"):
            parts.append(f"{len(summary['rejected'])} rejected")
        if evaluation:
            mean = evaluation["mean"]
            parts.append("no slot has a score" if mean is None else f"mean over slots {mean:.4f}")
            if evaluation["clustering"]:
                parts.append(f"clustering accuracy {evaluation['clustering']['accuracy']:.2f}")
        self.say.line("  ".join(parts))
