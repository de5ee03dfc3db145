"""A deployment on one machine and Flower's simulation against the same run in one process: the same bits, and what Flower costs.

    FEDQUILT_DATA=FOLDER python benchmarks/deploy.py [--clients 3] [--rounds 3] [--steps 10] [--set a.b=c]

One SuperLink and a SuperNode per client over TLS with node keys (fedquilt.deploy.flower.rehearsal); then ``flwr run`` on Ray.
FL-TAC on MiniLM and the five GLUE tasks, the sequential engine on one thread everywhere. Printed: whether every byte of the
adapters and of the journals is the same, and the seconds of every round, of the last evaluation, of the whole, and what is left of
it: start and end. Clients of the deployment wait for runs with their model loaded, as they do on machines of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from grid import CONFIGS, lines, row

from fedquilt.deploy.flower.network import Home
from fedquilt.deploy.flower.rehearsal import Rehearsal
from fedquilt.deploy.project import write
from fedquilt.runs.config import load_config
from fedquilt.runs.launch import run

PATIENCE = 1800.0
DETERMINED = ("rounds.jsonl", "evals.jsonl", "routes.jsonl", "adapters/*/*", "adapters/*.json")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a run determines."""
    files = sorted({path for pattern in DETERMINED for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def spent(folder: Path) -> tuple[list[float], float]:
    """Seconds of every round, and of evaluations."""
    events = lines(folder / "events.jsonl")
    of = {kind: [event["seconds"] for event in events if event["event"] == kind] for kind in ("round", "eval")}
    return of["round"], sum(of["eval"])


def deployed(folder: Path, config: Path, clients: int) -> float:
    """Over a network of processes; seconds from submission to the end."""
    nodes = [{"client": n, "config": str(config), "state": str(folder / f"c{n}")} for n in range(clients)]
    up = time.time()
    with Rehearsal(folder, nodes) as network:
        end = time.time() + PATIENCE
        while any("is loaded" not in network.said(f"node{n}") for n in range(clients)):
            for n in range(clients):
                if "cannot train" in network.said(f"node{n}") or time.time() > end:
                    raise SystemExit(network.said(f"node{n}"))
            time.sleep(0.1)
        print(f"models loaded {time.time() - up:.1f} s after the first process was started", file=sys.stderr, flush=True)
        begin = time.time()
        submitted = network.run(config=str(config), directory=str(folder / "run"), clients=clients)
        if submitted.wait() or not (folder / "run" / "summary.json").exists():
            raise SystemExit(network.said("run"))
        return time.time() - begin


def simulated(folder: Path, config: Path, clients: int) -> float:
    """In Flower's own simulation."""
    write(folder / "project", ["127.0.0.1"], 1)
    said = {"config": str(config), "directory": str(folder / "run"), "state": str(folder / "state"), "clients": clients}
    begin = time.time()
    done = Home(folder / "home").simulate(folder / "project" / "server" / "app", said, clients, PATIENCE)
    if done.returncode or not (folder / "run" / "summary.json").exists():
        raise SystemExit(done.stdout + done.stderr)
    return time.time() - begin


def alone(folder: Path, config: Path, clients: int) -> float:
    """In one process, this one."""
    begin = time.time()
    run(config, directory=folder / "run")
    return time.time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    arguments = parser.parse_args()
    sets = [f"partition.clients={arguments.clients}", f"rounds={arguments.rounds}", f"method.steps={arguments.steps}"]
    sets += ["engine=sequential", "threads=1", "evaluation.every=0", "evaluation.start=false", *arguments.overrides]
    ways: dict[str, Callable[[Path, Path, int], float]] = {
        "one process": alone,
        "a network": deployed,
        "Flower's simulation": simulated,
    }
    head = ["s", *(f"round {n}" for n in range(1, arguments.rounds + 1)), "evaluation", "start and end", "all", "files"]
    print(row(head) + "\n" + "|---" * len(head) + "|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        config = Path(temporary) / "config.toml"
        config.write_text(load_config(CONFIGS / "glue" / "fltac.toml", sets).to_toml(), encoding="utf-8")
        expected: dict[str, str] = {}
        for number, (name, way) in enumerate(ways.items()):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            whole = way(folder, config, arguments.clients)
            rounds, judged = spent(folder / "run")
            found = digests(folder / "run")
            expected = expected or found
            other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            figures = [*rounds, judged, whole - sum(rounds) - judged, whole]
            print(row([name, *(f"{x:.1f}" for x in figures), f"{len(found)}, other: {other or 'none'}"]), flush=True)


if __name__ == "__main__":
    main()
