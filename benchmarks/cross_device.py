"""What a population costs: FedTT on MiniLM, ten clients a round out of ten and out of a thousand.

    FEDQUILT_DATA=FOLDER python benchmarks/cross_device.py [--clients 10 1000] [--cohort 10] [--rounds 20] [--steps 4]

FOLDER holds glue_sst2/{train,validation}.parquet: 20,000 of its rows, so that every client fills its batches.
Every run is a process of its own; its peak memory is that of the process (getrusage), training, checkpoints and evaluation
together. Each is made twice: with a common head (nothing stays on a client), and with private heads, which clients keep in the
run directory. Printed: peak memory and its ratio to that of the first number of clients, who ever took part, and what the state
on disk weighs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedquilt.cli.progress import make_progress
from fedquilt.runs.config import parse
from fedquilt.runs.launch import run
from fedquilt.runs.store import Store


def tables(clients: int, head: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of one run."""
    return {
        "name": f"{clients}-{head}",
        "rounds": arguments.rounds,
        "threads": 1,
        "model": {"name": "asset:minilm", "max_length": 64},
        "adapter": {"rank": 5, "bottleneck": 64, "head": head},
        "method": {
            "name": "fedtt",
            "lr": 2e-3,
            "steps": arguments.steps,
            "batch": 8,
            "participation": min(1.0, arguments.cohort / clients),
        },
        "partition": {"how": "iid", "clients": clients},
        "evaluation": {"every": 0, "start": False},
        "tasks": [
            {
                "name": "sst2",
                "preset": "glue/sst2",
                "source": "file:$FEDQUILT_DATA/glue_sst2/{split}.parquet",
                "max_train": 20000,
                "max_eval": 50,
            }
        ],
    }


def measure(clients: int, head: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run in this process; what it took."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "run"
        run(parse(tables(clients, head, arguments), Path()), directory=found, progress=make_progress())
        store = Store(found)
        loaded = store.load(strict=True)
        if loaded is None:
            raise SystemExit("nothing was committed")
        return {
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "took part": len({client for client, *_ in loaded[1]["delivery"]["visits"]}),
            "kept": len(store.clients.index),
            "state": sum(path.stat().st_size for path in (found / "state").iterdir()),
            "manifest": (found / "hub.json").stat().st_size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", nargs=2, metavar=("CLIENTS", "HEAD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.one[1], arguments)))
        return
    print("| clients | head | peak memory, MB | ratio | took part | keep something | state, kB | manifest, kB |")
    print("|---|---|---|---|---|---|---|---|")
    for head in ("federated", "private"):
        first = 0.0
        for clients in arguments.clients:
            words = [sys.executable, __file__, *sys.argv[1:], "--one", str(clients), head]
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(said.splitlines()[-1])
            first = first or found["peak"]
            sizes = [f"{found[key] / 1e3:,.0f}" for key in ("state", "manifest")]
            cells = [f"{clients:,}", head, f"{found['peak'] / 1e6:,.0f}", f"{found['peak'] / first:.3f}"]
            print("| " + " | ".join([*cells, str(found["took part"]), str(found["kept"]), *sizes]) + " |", flush=True)


if __name__ == "__main__":
    main()
