"""What secure aggregation costs in a run: bytes, seconds, scores and clusters beside the same run in the clear.

    python benchmarks/sums.py [--rounds 3]

The demonstration's clients (10, four tasks, MiniLM, 34 slots) and a server, every message through its bytes, in one process: so the
seconds are those of computing. Over a network every sum takes three exchanges more. Methods: FedIT, whose server needs nothing but
sums, and FL-TAC, whose clients then choose their rows. kB are a client's in the last round, in which nobody is new, and what the
first has more: finding clusters (and what newcomers are sent). Seconds are of the last round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from fedquilt.deploy.build import host, remote, run_id
from fedquilt.deploy.loopback import Loopback
from fedquilt.deploy.remote import Remote
from fedquilt.runs.build import Built, build
from fedquilt.runs.config import load_config
from fedquilt.runs.launch import run

DEMO = Path(__file__).parents[1] / "src" / "fedquilt" / "configs" / "demo"
CASES: dict[str, tuple[str, list[str]]] = {
    "FedIT": ("fedit-params.toml", []),
    "FedIT, sums": ("fedit-params.toml", ["secure_aggregation=true"]),
    "FL-TAC": ("fltac.toml", []),
    "FL-TAC, sums": ("fltac.toml", ["secure_aggregation=true", "method.choice=clients"]),
}


def measure(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """One run over a loopback."""
    path, settings = CASES[name]
    config = load_config(DEMO / path, [*settings, f"rounds={rounds}", "threads=1", "evaluation.start=false", "evaluation.every=0"])
    own = build(config)
    hosts = {c: host(own, c, folder / f"client-{c}").answer for c in own.view.roster(1)}

    def engine(built: Built) -> Remote:
        made = remote(built, Loopback(hosts), run_id(folder / "run"))
        made.meet()
        return made

    directory = run(config, directory=folder / "run", engine=engine)
    lines = [json.loads(line) for line in (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [event["seconds"] for event in events if event["event"] == "round"]
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    found, each = summary["clustering"], 1e3 * len(hosts)
    both = [line["bytes_up"] + line["bytes_down"] for line in lines]
    return {
        "kB up": lines[-1]["bytes_up"] / each,
        "kB down": lines[-1]["bytes_down"] / each,
        "kB more in the first": (both[0] - both[-1]) / each,
        "s a round": seconds[-1],
        "mean score": summary["mean"],
        "clusters": found["accuracy"] if found else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    first = True
    for name in CASES:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, rounds, Path(folder))
        if first:
            print(f"| {' | '.join(['', *row, 's in all'])} |\n{'|---' * (len(row) + 2)}|")
            first = False
        shown = ["–" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".") for value in row.values()]
        print(f"| {' | '.join([name, *shown, f'{time.perf_counter() - begin:.0f}'])} |", flush=True)


if __name__ == "__main__":
    main()
