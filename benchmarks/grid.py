"""FL-TAC against its baselines, several seeds: every configuration of configs/FAMILY.

    FEDQUILT_DATA=FOLDER python benchmarks/grid.py [FAMILY] [--seeds 0 1 2] [--only fltac fedit-r1] [--out runs] [--set a.b=c]

FAMILY is glue (the five GLUE tasks of the FL-TAC paper on MiniLM), open (what FL-TAC leaves open, on the same tasks with fewer
steps), fedtt (FedTT and what it is compared with, on SST-2; benchmarks/fedtt.py has all its tables), superglue (SuperGLUE
and SQuAD by FedTT), cifar (CIFAR-10 and CIFAR-100 on a ViT-S/14) or dolly (the eight categories of Dolly-15k on SmolLM2; losses);
without one all are run.
Finished runs are kept, interrupted ones resumed; at the end a Markdown table of mean and standard deviation over the seeds is
printed, with the clustering accuracy after every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedquilt.cli.progress import make_progress
from fedquilt.evaluate import clustering
from fedquilt.runs.config import load_config
from fedquilt.runs.launch import resume, run
from fedquilt.types import Slot

CONFIGS = Path(__file__).parents[1] / "configs"
FAMILIES = {
    "glue": (
        "fltac",
        "fltac-b-factors",
        "fltac-fingerprint",
        "fltac-fingerprint-long",
        "fltac-paper",
        "fedit-r1",
        "fedit-r5",
        "fedit-r16",
        "local",
        "centralised",
    ),
    "open": (
        *("plain", "factors", "b-factors", "b-factors-even", "products", "updates", "history", "fisher", "fingerprint"),
        *("fisher-plain", "fisher-estimate", "fisher-third", "history-third", "fisher-arriving", "fisher-arriving-estimate"),
        *("fisher-places", "fisher-unequal"),
    ),
    "fedtt": (
        *("fedtt", "fedtt-plus", "fedtt-plus-single", "lora-r8", "lora-r4", "ffa-lora", "rolora"),
        *("bitfit", "bottleneck", "prefix", "prompt", "p-tuning", "ia3"),
    ),
    "superglue": ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc", "squad"),
    "cifar": ("fltac", "fedit-r1", "fedit-r2", "local", "centralised"),
    "dolly": ("fltac", "fedit-r8", "local", "centralised", "fltac-split", "fedit-split"),
}


def ensure(config: Path, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of a run; trained if it is not there."""
    if not (folder / "summary.json").exists():
        if (folder / "hub.json").exists():
            resume(folder, progress=make_progress())
        else:
            run(load_config(config, [f"seed={seed}", *overrides]), directory=folder, progress=make_progress())
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary["rounds_clustering"] = clusters(folder) if summary["clustering"] else []
    return summary


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clusters(folder: Path) -> list[float]:
    """Clustering accuracy after every round; a round in which nothing came back has no line and leaves everything as it was."""
    found: dict[int, float] = {}
    for line in lines(folder / "routes.jsonl"):
        slots = {Slot(entry["client"], entry["slot"]): entry for entry in line["slots"]}
        score = clustering({slot: entry["row"] for slot, entry in slots.items()}, {slot: e["tasks"] for slot, e in slots.items()})
        found[line["round"]] = score["accuracy"] if score else float("nan")
    scores = [float("nan")]
    for number in range(1, max(found, default=0) + 1):
        scores.append(found.get(number, scores[-1]))
    return scores[1:]


def spread(values: list[float], digits: int = 3) -> str:
    """mean ± standard deviation."""
    middle = statistics.mean(values)
    return f"{middle:.{digits}f} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else f"{middle:.{digits}f}"


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a row per configuration, a column per task of any of them."""
    tasks = sorted({task for runs in results.values() for task in runs[0]["tasks"]})
    head = ["run", "mean", *tasks, "clustering", "MB up", "MB down", "minutes"]
    out = [row(head), "|" + "---|" * len(head)]
    for name, runs in results.items():
        cells = [name, spread([r["mean"] for r in runs])]
        cells += [spread([r["tasks"][task]["slot_mean"] for r in runs]) if task in runs[0]["tasks"] else "" for task in tasks]
        cells.append(spread([r["clustering"]["accuracy"] for r in runs]) if runs[0]["clustering"] else "")
        cells += [spread([r["bytes"][way] / 1e6 for r in runs], 1) for way in ("up", "down")]
        cells.append(spread([r["seconds"]["total"] / 60 for r in runs], 1))
        out.append(row(cells))
    most = max(len(found["rounds_clustering"]) for runs in results.values() for found in runs)
    if most:
        out += ["", "Clustering accuracy after every round:", ""]
        out += [row(["run", "seed", *map(str, range(1, most + 1))]), "|" + "---|" * (most + 2)]
    for name, runs in results.items():
        for found in runs:
            if shown := [f"{x:.2f}" for x in found["rounds_clustering"]]:
                out.append(row([name, str(found["seed"]), *shown, *[""] * (most - len(shown))]))
    return "\n".join(out)


def grid(family: str, arguments: argparse.Namespace) -> str:
    """Run what is missing of one family; its table."""
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for name in arguments.only or FAMILIES[family]:
            config, folder = CONFIGS / family / f"{name}.toml", arguments.out / family / f"{name}-{seed}"
            results.setdefault(name, []).append(ensure(config, seed, folder, arguments.overrides))
    return table(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", choices=FAMILIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="default: all configurations of the family")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=C")
    arguments = parser.parse_args()
    families = [arguments.family] if arguments.family else list(FAMILIES)
    for family in families:
        if unknown := set(arguments.only) - set(FAMILIES[family]):
            parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(FAMILIES[family])} of {family}")
    for family in families:
        print(grid(family, arguments))


if __name__ == "__main__":
    main()
