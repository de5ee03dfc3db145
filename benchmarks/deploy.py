"""A deployment on one machine against the same run in one process: the same bits, and what Flower costs.

    FEDQUILT_DATA=FOLDER python benchmarks/deploy.py [--clients 3] [--rounds 3] [--steps 10] [--set a.b=c]

One SuperLink and a SuperNode per client over TLS with node keys (fedquilt.deploy.flower.rehearsal), FL-TAC on MiniLM and the five
GLUE tasks, the sequential engine on one thread everywhere. Printed: whether every byte of the adapters and of the journals is the
same, and the seconds of every round of both and of the whole, evaluation and start included: what is more over Flower is what it
costs. Clients wait for runs with their model loaded, as they do on machines of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

from grid import CONFIGS, lines, row

from fedquilt.deploy.flower.rehearsal import Rehearsal
from fedquilt.runs.config import load_config
from fedquilt.runs.launch import run

DETERMINED = ("rounds.jsonl", "evals.jsonl", "routes.jsonl", "adapters/*/*", "adapters/*.json")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a run determines."""
    files = sorted({path for pattern in DETERMINED for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def seconds(folder: Path) -> list[float]:
    """Of every round, evaluation aside."""
    return [event["seconds"] for event in lines(folder / "events.jsonl") if event["event"] == "round"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    arguments = parser.parse_args()
    sets = [f"partition.clients={arguments.clients}", f"rounds={arguments.rounds}", f"method.steps={arguments.steps}"]
    sets += ["engine=sequential", "threads=1", "evaluation.every=0", "evaluation.start=false", *arguments.overrides]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "config.toml"
        config.write_text(load_config(CONFIGS / "glue" / "fltac.toml", sets).to_toml(), encoding="utf-8")
        begin = time.time()
        run(config, directory=folder / "here")
        alone = time.time() - begin
        nodes = [{"client": n, "config": str(config), "state": str(folder / f"c{n}")} for n in range(arguments.clients)]
        begin = time.time()
        with Rehearsal(folder, nodes) as network:
            while any("is loaded" not in network.said(f"node{n}") for n in range(arguments.clients)):
                time.sleep(0.1)
            up = time.time() - begin
            submitted = network.run(config=str(config), directory=str(folder / "there"), clients=arguments.clients)
            if submitted.wait() or not (folder / "there" / "summary.json").exists():
                raise SystemExit(network.said("run"))
            whole = time.time() - begin - up
        here, there = digests(folder / "here"), digests(folder / "there")
        other = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        print(f"{len(here)} files, different: {other or 'none'}")
        print(f"network up, models loaded: {up:.1f} s; from submission to the end {whole:.1f} s, in one process {alone:.1f} s\n")
        found = seconds(folder / "here"), seconds(folder / "there")
        print(row(["round", *map(str, range(1, arguments.rounds + 1)), "median"]) + "\n" + "|---" * (arguments.rounds + 2) + "|")
        for name, took in (("one process, s", found[0]), ("over Flower, s", found[1])):
            print(row([name, *(f"{x:.1f}" for x in took), f"{statistics.median(took):.1f}"]))


if __name__ == "__main__":
    main()
