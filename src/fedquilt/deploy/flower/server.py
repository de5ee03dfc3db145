"""The server's app.

Its settings are the run's configuration of Flower: ``config``, a file on the server; ``directory``, of the run, new or to be
continued; ``clients``, how many are waited for; ``deadline``, seconds for a round; ``registered``, a file that says whose key a
node has: without it a client's number is what it says.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedquilt.deploy.build import remote, run_id
from fedquilt.deploy.flower.grid import GridTransport
from fedquilt.deploy.project import CLIENT, registered
from fedquilt.deploy.remote import Remote
from fedquilt.errors import ConfigError
from fedquilt.runs.build import Built
from fedquilt.runs.launch import resume, run
from fedquilt.runs.store import begun

app = ServerApp()


def numbers(path: Path) -> dict[int, int]:
    """Node -> the client whose key it was registered with."""
    return {int(entry["node"]): int(found[1]) for name, entry in registered(path).items() if (found := CLIENT.fullmatch(name))}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or continue what is in the directory."""
    settings = context.run_config
    if not settings["config"] or not settings["directory"]:
        raise ConfigError("config and directory are needed", where="flwr run -c", fix='-c \'config="..." directory="..."\'')
    directory, deadline = Path(str(settings["directory"])), float(settings.get("deadline", 3600.0))
    clients = int(settings.get("clients", 1))
    transport = GridTransport(grid, ttl=deadline)

    def engine(built: Built) -> Remote:
        transport.wait(clients)
        made = remote(built, transport, run_id(directory), deadline)
        if settings.get("registered"):
            made.numbers = partial(numbers, Path(str(settings["registered"])))
        made.meet()
        print(f"{len(made.nodes)} of {clients} clients take part", flush=True)
        slots, clusters = sum(made.roster(1).values()), built.method.assign.rows - 1
        if clusters >= slots:
            print(f"warning: {clusters} clusters for {slots} slots: nothing will be averaged (method.tasks)", flush=True)
        for node, why in sorted(made.refused.items()):
            print(f"node {node} takes no part: {why}", flush=True)  # a ServerApp's output is what the person who submits sees
        return made

    if begun(directory):
        resume(directory, engine=engine)
    else:
        run(str(settings["config"]), directory=directory, engine=engine)
