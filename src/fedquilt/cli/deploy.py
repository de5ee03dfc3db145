"""deploy init, deploy rehearse: clients that are elsewhere, over Flower."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli import show
from fedquilt.cli.federation import finish, watch
from fedquilt.cli.flower import need_flower
from fedquilt.cli.runs import Config, Seed, Set, read_config

app = typer.Typer(help="Clients that are elsewhere, over Flower.", no_args_is_help=True)


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
    typer.echo(f"written: {folder}/server, {folder}/client-0 to client-{clients - 1}")
    show.say("Each folder is for one machine, and the keys in it for nobody else. What to do with them: docs/deploy.md")


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, for the client's machine.")],
    server: Annotated[Path, typer.Option("--server", metavar="FOLDER", help="The server's.")],
    host: Annotated[str, typer.Option("--host", help="A name or address of the server.")],
) -> None:
    """Write the folder of one more client, and let the server know its key."""
    need_flower()
    from fedquilt.deploy.project import add as write

    typer.echo(f"written: {folder}, client {write(folder, server, host)}")


@app.command()
def rehearse(
    config: Config,
    override: Set = None,
    seed: Seed = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="The run directory. Default: runs/NAME-rehearsal.")] = None,
    as_json: show.AsJson = False,
) -> None:
    """Run CONFIG on a real Flower network on this machine: a server and every client in processes of their own, over TLS with keys.

    The result is that of fedquilt run. Clients keep their state beside the run directory, in DIR-clients, with what the server
    said; the same command continues a rehearsal that was interrupted."""
    need_flower()
    from fedquilt.data.partition import refuse_own
    from fedquilt.deploy.flower.rehearsal import Rehearsal

    resolved = read_config(config, override, seed)
    refuse_own(resolved.partition)
    folder = (directory or Path("runs") / f"{resolved.name}-rehearsal").resolve()
    with tempfile.TemporaryDirectory(prefix="fq-") as temporary:  # a socket's path is short
        place, state = Path(temporary), folder.with_name(f"{folder.name}-clients")
        (place / "config.toml").write_text(resolved.to_toml(), encoding="utf-8")
        every = {"config": str(place / "config.toml"), "sockets": str(place)}
        nodes = [{"client": n, "state": str(state / str(n)), **every} for n in range(resolved.partition.clients)]
        show.say(f"starting a server and {len(nodes)} clients ...")
        with Rehearsal(place, nodes) as network:
            submitted = network.run(config=str(place / "config.toml"), directory=str(folder), clients=len(nodes))
            watch(submitted, folder / "rounds.jsonl", resolved.rounds, place / "run.log")
        state.mkdir(parents=True, exist_ok=True)
        log = Path(shutil.copy(place / "run.log", state / "server.log"))
    finish(folder, as_json, log, "the same command")
