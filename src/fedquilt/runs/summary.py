"""summary.json: what a finished run comes down to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedquilt.meter import Meter
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.build import Built


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All lines of a journal; empty if there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_summary(built: Built, folder: Path, meter: Meter) -> None:
    """Write summary.json from the journals."""
    rounds, evals, events = (read_jsonl(folder / f"{name}.jsonl") for name in ("rounds", "evals", "events"))
    config = built.config
    last: dict[str, Any] = {"mean": None, "tasks": {}, "slots": [], "clustering": None}
    if evals and evals[-1]["round"] == config.rounds:  # else no client answered at the end
        last = evals[-1]
    jobs = sum(len(entry["cohort"]) for entry in rounds) or 1
    tasks = {}
    for name, entry in last["tasks"].items():
        own = [slot["metrics"] for slot in last["slots"] if slot["task"] == name]
        primary = built.tasks[name].metrics[0] if name in built.tasks else next(iter(own[0]))
        mine = [metrics[primary] for metrics in own if metrics[primary] is not None]
        spread = {"slot_min": min(mine), "slot_max": max(mine)} if mine else {}
        tasks[name] = {**entry, "metric": primary, "n_slots": len(mine), **spread}
    seconds = {kind: sum(event["seconds"] for event in events if event["event"] == kind) for kind in ("round", "eval")}
    summary = {
        "name": config.name,
        "method": config.method["name"],
        "config_hash": config.digest(),
        "seed": config.seed,
        "rounds": config.rounds,
        "mean": last["mean"],
        "tasks": tasks,
        "clustering": last["clustering"],
        "parameters": built.adapter.spec.counts(),
        "bytes": {
            "up": meter.total_up,
            "down": meter.total_down,
            "up_per_client_round": meter.total_up / jobs,
            "down_per_client_round": meter.total_down / jobs,
        },
        "steps_total": built.count_steps() if built.tasks else None,  # of data that is elsewhere nobody knows
        "seconds": {"total": sum(event["seconds"] for event in events), "train": seconds["round"], "eval": seconds["eval"]},
    }
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1).encode())
