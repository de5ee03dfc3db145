"""server, client, submit, status: a federation whose parties are on machines of their own."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Annotated

import typer

from fedquilt.cli import show
from fedquilt.cli.flower import need_flower
from fedquilt.cli.runs import Seed, Set, print_result, read_config

if TYPE_CHECKING:
    from fedquilt.runs.config import RunConfig

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="As fedquilt deploy init wrote it. Default: this one.")]
Server = Annotated[Path, typer.Option("--server", metavar="FOLDER", help="The server's. Default: this one.")]
LOOK = 0.5  # seconds between two looks at how far a run is
OURS = re.compile(r"\d+ of \d+ clients take part|node \d+ takes no part|warning: ")  # of what Flower and the server's app say
LINES = 10  # of a log that names no error


def server(folder: Folder = Path()) -> None:
    """Let clients in, and carry messages between them and runs. Ends with Ctrl-C; what was going on continues afterwards."""
    need_flower()
    from fedquilt.deploy.flower.parties import serve
    from fedquilt.deploy.settings import ServerSettings, read

    folder = folder.resolve()
    settings = read(folder / "server.toml", ServerSettings)
    show.say(
        f"warning: whoever can log in to this machine can start programs on every client, by port {settings.control}: Flower's\n"
        "control interface asks nobody who they are. From other machines it cannot be reached."
    )
    serve(folder, settings, show.say)


def client(
    folder: Folder = Path(),
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=FILE", help="A task of this machine and its rows; may be repeated.")
    ] = None,
) -> None:
    """Take part with this machine's data. Ends with Ctrl-C; started again, it takes part from the next round on."""
    need_flower()
    from fedquilt.deploy.flower.parties import join
    from fedquilt.deploy.settings import ClientSettings, read
    from fedquilt.errors import ConfigError
    from fedquilt.runs.build import load_tasks
    from fedquilt.runs.config import load_config

    folder = folder.resolve()
    settings = read(folder / "client.toml", ClientSettings)
    path = (folder / settings.config).resolve()
    config = load_config(path)
    if data:
        config, path = with_data(config, data), folder / "given.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
    if not config.tasks:
        raise ConfigError("this machine has no data", where=str(path), fix="add [[tasks]] there, or --data NAME=FILE")
    for name, task in load_tasks(config).items():  # what is wrong with it is said now, not in the first round
        show.say(f"{name}: {len(task.train):,} rows to train on, {len(task.evaluation):,} to evaluate on")
    show.say(f"client {settings.client} of {settings.server}")
    join(folder, settings, path, show.say)


def submit(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file; none with --resume.")] = None,
    folder: Server = Path(),
    override: Set = None,
    seed: Seed = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="The run directory. Default: runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Continue this run.")] = None,
    clients: Annotated[int | None, typer.Option("--clients", min=1, help="How many to wait for. Default: all.")] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", min=0, help="Seconds for a round. Default: server.toml's.")
    ] = None,
    as_json: show.AsJson = False,
) -> None:
    """Start a run with the clients that are there, on the server's machine, and watch it."""
    need_flower()
    from fedquilt.deploy.flower.parties import keys, need_server, start_run
    from fedquilt.errors import ConfigError
    from fedquilt.runs.store import begun

    if (config is None) == (resume is None):
        raise ConfigError("either CONFIG or --resume RUN", where="fedquilt submit", fix="name one of them")
    folder = folder.resolve()
    resolved = read_config(config or Path(str(resume)) / "config.toml", override, seed)
    settings = need_server(folder)
    run = (resume or directory or Path("runs") / resolved.name).resolve()
    if resume is None and begun(run):
        fix = f"continue it (fedquilt submit --resume {run}), or choose another --dir"
        raise ConfigError("the run directory holds a run already", where=str(run), fix=fix)
    expected = clients or len(keys(folder))
    show.say(f"waiting for {expected} clients ...")
    submitted, log = start_run(folder, resolved, run, expected, deadline or settings.deadline)
    try:
        watch(submitted, run / "rounds.jsonl", resolved.rounds, log)
    except KeyboardInterrupt:
        submitted.kill()
        show.say(f"the run goes on without being watched: {run}")
        raise typer.Exit(130) from None
    finish(run, as_json, log, f"fedquilt submit --resume {run}")


def status(folder: Server = Path(), as_json: show.AsJson = False) -> None:
    """Which clients are connected, and what runs there are."""
    need_flower()
    from fedquilt.deploy.flower.parties import home_of, need_server
    from fedquilt.report.table import Table

    need_server(folder.resolve())
    home = home_of(folder.resolve())
    nodes, runs = home.nodes(), home.runs()
    if as_json:
        show.print_json({"clients": nodes, "runs": runs})
        return
    columns = ("name", "status", "node-id")
    show.print_table(Table(columns, tuple(tuple(str(node.get(key, "")) for key in columns) for node in nodes)), "clients")
    columns = ("run-id", "status", "elapsed")
    show.print_table(Table(columns, tuple(tuple(str(run.get(key, "")) for key in columns) for run in runs)), "runs")


def with_data(config: RunConfig, data: list[str]) -> RunConfig:
    """The configuration with more tasks, given as ``NAME=FILE``."""
    from fedquilt.errors import ConfigError
    from fedquilt.runs.config import parse

    raw = json.loads(config.model_dump_json(exclude_none=True))
    for text in data:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"'{text}' is not of the form NAME=FILE", where="--data", fix="for example --data reviews=reviews.csv"
            )
        others = [task for task in raw.get("tasks", []) if task["name"] != name]
        raw["tasks"] = [*others, {"name": name, "source": f"file:{Path(path).resolve()}"}]
    return parse(raw, Path.cwd())


def watch(submitted: Popen[bytes], journal: Path, rounds: int, log: Path) -> int:
    """Say who takes part and every round that is done, until the run has ended; its exit code."""
    told, done = 0, 0
    while True:
        code = submitted.poll()
        lines = _lines(log)
        for line in filter(OURS.match, lines[told:]):
            show.say(line)
        told, lines = len(lines), _lines(journal)
        for line in lines[done:]:
            entry = json.loads(line)
            loss = "" if entry["loss"] is None else f"  loss {entry['loss']:.4f}"
            show.say(f"round {entry['round']}/{rounds}  {entry['accepted']} of {entry['jobs']} slots{loss}")
        done = len(lines)
        if code is not None:
            return code
        time.sleep(LOOK)


def _lines(path: Path) -> list[str]:
    """Whole lines: the last one may be half there."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def finish(run: Path, as_json: bool, log: Path, again: str) -> None:
    """Print what a run came to; ``log``: what its server said; ``again``: the command that continues it.

    Raises:
        StateError: it did not end.
    """
    from fedquilt.deploy.said import last_error
    from fedquilt.errors import StateError

    if not (run / "summary.json").exists():
        why = last_error(_lines(log), LINES) or "the server said nothing"
        fix = f"mend it (all that the server said: {log}), and continue: {again}"
        raise StateError("the run did not end", where=str(run), why=why, fix=fix)
    print_result(run, as_json)
