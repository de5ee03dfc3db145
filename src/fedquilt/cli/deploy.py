"""deploy init, deploy rehearse: clients that are elsewhere, over Flower."""

from __future__ import annotations

import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from subprocess import Popen
from typing import Annotated

import typer

from fedquilt.cli import show
from fedquilt.cli.runs import Config, Seed, Set, print_result, read_config

app = typer.Typer(help="Clients that are elsewhere, over Flower.", no_args_is_help=True)
LOOK = 0.5  # seconds between two looks at how far a run is


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    host: Annotated[list[str], typer.Option("--host", help="A name or address of the server; may be repeated.")],
    clients: Annotated[int, typer.Option("--clients", min=1, help="How many.")] = 3,
) -> None:
    """Write the certificates and keys of a federation, and the app for Flower."""
    need_flower()
    from fedquilt.deploy.project import write

    write(folder, host, clients)
    typer.echo(f"written: {folder}/app, {folder}/server, {folder}/client-0 to client-{clients - 1}")
    show.say("Each folder is for one machine, and the keys in it for nobody else. What to do with them: docs/deploy.md")


@app.command()
def rehearse(
    config: Config,
    override: Set = None,
    seed: Seed = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="The run directory. Default: runs/NAME-rehearsal.")] = None,
    as_json: show.AsJson = False,
) -> None:
    """Run CONFIG on a real Flower network on this machine: a server and every client in processes of their own, over TLS with keys.

    The result is that of fedquilt run. Clients keep their state beside the run directory, in DIR-clients; the same command
    continues a rehearsal that was interrupted."""
    need_flower()
    from fedquilt.deploy.flower.rehearsal import Rehearsal
    from fedquilt.errors import StateError

    resolved = read_config(config, override, seed)
    folder = (directory or Path("runs") / f"{resolved.name}-rehearsal").resolve()
    with tempfile.TemporaryDirectory(prefix="fq-") as temporary:  # a socket's path is short
        place, state = Path(temporary), folder.with_name(f"{folder.name}-clients")
        (place / "config.toml").write_text(resolved.to_toml(), encoding="utf-8")
        every = {"config": str(place / "config.toml"), "sockets": str(place)}
        nodes = [{"client": n, "state": str(state / str(n)), **every} for n in range(resolved.partition.clients)]
        show.say(f"starting a server and {len(nodes)} clients ...")
        with Rehearsal(place, nodes) as network:
            submitted = network.run(config=str(place / "config.toml"), directory=str(folder), clients=len(nodes))
            if _watch(submitted, folder / "rounds.jsonl", resolved.rounds) or not (folder / "summary.json").exists():
                why = network.said("run")[-2000:]
                raise StateError("the rehearsal did not finish", where=str(folder), why=why, fix="fedquilt run CONFIG shows errors")
    print_result(folder, as_json)


def need_flower() -> None:
    """Raise if the extra is not installed."""
    from fedquilt.errors import ConfigError

    if find_spec("flwr") is None:
        raise ConfigError("this needs Flower", where="the extra 'flower'", fix="pip install 'fedquilt[flower]'")


def _watch(submitted: Popen[bytes], journal: Path, rounds: int) -> int:
    """Say every round that is done, until the run has ended; its exit code."""
    said = 0
    while True:
        code = submitted.poll()
        text = journal.read_text(encoding="utf-8") if journal.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half there
        for line in lines[said:]:
            entry = json.loads(line)
            loss = "" if entry["loss"] is None else f"  loss {entry['loss']:.4f}"
            show.say(f"round {entry['round']}/{rounds}  {entry['accepted']} of {entry['jobs']} slots{loss}")
        said = len(lines)
        if code is not None:
            return code
        time.sleep(LOOK)
