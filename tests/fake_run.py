"""Writes run directories that no training produced: the reader's view of the file formats, for tests of reports and the CLI.

Also a program: ``python tests/fake_run.py FOLDER`` writes a clustered run and an unclustered one to look at.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("cola", "mrpc", "qnli", "sst2", "wnli")
METRICS = {"cola": ("matthews",), "mrpc": ("accuracy", "f1")}
ADAPTER, HEAD = 4608, 770


@dataclass(frozen=True)
class Fake:
    """What the fake run looks like; ``clustered=False`` is FedIT: one row, no clustering scores."""

    name: str = "glue-fltac"
    method: str = "fltac"
    seed: int = 0
    tasks: tuple[str, ...] = TASKS
    clients: int = 10
    rounds: int = 4
    clustered: bool = True
    finished: bool = True
    lr: float = 2e-3


def write_run(folder: Path, fake: Fake | None = None) -> Path:
    """Write all files of one run into ``folder`` and return it."""
    fake = fake or Fake()
    folder.mkdir(parents=True)
    rng = np.random.default_rng(fake.seed)
    counts = _counts(fake, rng)
    (folder / "config.toml").write_text(_config(fake))
    _json(folder / "env.json", {"python": "3.11.7", "packages": {"torch": "2.13.0", "peft": "0.21.2"}, "threads": 1})
    _json(folder / "partition.json", {"how": "dirichlet-task", "parts": _parts(counts)})
    slots = _slots(fake, counts)
    centres = {task: rng.normal(size=64) * 2 for task in fake.tasks}
    logs: dict[str, list[dict[str, Any]]] = {"rounds": [], "routes": [], "evals": [_evaluation(fake, slots, 0, rng)], "points": []}
    for number in range(1, fake.rounds + 1):
        routed = [slot | {"row": _row(fake, slot, number, rng)} for slot in slots]
        logs["rounds"].append(_round(fake, routed, number))
        logs["routes"].append(_routes(routed, number))
        logs["evals"].append(_evaluation(fake, routed, number, rng))
        logs["points"].append(_points(fake, routed, centres, number, rng))
    logs["events"] = [{"time": 1.7e9 + 30 * n, "event": "round", "round": n, "seconds": 28.5} for n in range(1, fake.rounds + 1)]
    for log, rows in logs.items():
        (folder / f"{log}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if fake.finished:
        _json(folder / "summary.json", _summary(fake, logs))
    return folder


def _counts(fake: Fake, rng: np.random.Generator) -> dict[str, list[int]]:
    counts = {}
    for place, task in enumerate(fake.tasks):
        share = rng.dirichlet([0.5] * fake.clients)
        share[share < 0.01] = 0
        counts[task] = [round(value) for value in (share / share.sum() * 800 * (place + 1))]
    return counts


def _parts(counts: dict[str, list[int]]) -> dict[str, list[list[int]]]:
    starts = {task: np.concatenate([[0], np.cumsum(row)]) for task, row in counts.items()}
    return {task: [list(range(starts[task][c], starts[task][c + 1])) for c in range(len(row))] for task, row in counts.items()}


def _slots(fake: Fake, counts: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Every (client, task) with examples is a slot. Slot numbers do not follow the tasks."""
    slots = []
    for client in range(fake.clients):
        mine = [task for task in reversed(fake.tasks) if counts[task][client]]
        slots += [{"client": client, "slot": n, "row": 0, "task": t, "samples": counts[t][client]} for n, t in enumerate(mine)]
    return slots


def _row(fake: Fake, slot: dict[str, Any], number: int, rng: np.random.Generator) -> int:
    if not fake.clustered:
        return 0
    wrong = rng.random() < 0.3 / number**2
    return 1 + int(rng.integers(len(fake.tasks)) if wrong else fake.tasks.index(slot["task"]))


def _routes(slots: list[dict[str, Any]], number: int) -> dict[str, Any]:
    keys = ("client", "slot", "row", "samples")
    return {"round": number, "slots": [{k: s[k] for k in keys} | {"tasks": [s["task"]]} for s in slots]}


def _round(fake: Fake, slots: list[dict[str, Any]], number: int) -> dict[str, Any]:
    size = 4 * (ADAPTER + HEAD) * len(slots)
    rejected = [{"slot": [slots[0]["client"], slots[0]["slot"]], "code": "nonfinite", "detail": "lora_A"}] if number == 2 else []
    return {
        "round": number,
        "cohort": list(range(fake.clients)),
        "jobs": len(slots),
        "accepted": len(slots) - len(rejected),
        "rejected": rejected,
        "loss": 0.7 * 0.8**number,
        "bytes_up": size,
        "bytes_down": size,
        "total_up": size * number,
        "total_down": size * number,
        "client_bytes": {},
        "step": {"inertia": 10.0 / number, "moved": 3.0},
    }


def _evaluation(fake: Fake, slots: list[dict[str, Any]], number: int, rng: np.random.Generator) -> dict[str, Any]:
    scores, tasks = [], {}
    ceiling = 0.85 if fake.clustered else 0.72
    for slot in slots:
        value = ceiling - 0.35 * 0.55**number + 0.02 * rng.normal() + 0.02 * fake.tasks.index(slot["task"])
        metrics = {name: round(value, 4) for name in METRICS.get(slot["task"], ("accuracy",))}
        scores.append({k: slot[k] for k in ("client", "slot", "row", "task", "samples")} | {"metrics": metrics})
    for task in fake.tasks:
        mine = [next(iter(s["metrics"].values())) for s in scores if s["task"] == task]
        mean = float(np.mean(mine)) if mine else None
        names = METRICS.get(task, ("accuracy",))
        tasks[task] = {"row": 1 + fake.tasks.index(task) if fake.clustered else 0, "slot_mean": mean}
        tasks[task]["metrics"] = {name: round(mean + 0.01, 4) if mean is not None else None for name in names}
    values = [next(iter(s["metrics"].values())) for s in scores]
    return {
        "round": number,
        "slots": scores,
        "tasks": tasks,
        "clustering": _clustering(fake, number),
        "mean": float(np.mean(values)),
    }


def _clustering(fake: Fake, number: int) -> dict[str, Any] | None:
    if not fake.clustered or number == 0:
        return None
    wrong = 0.3 / number**2
    return {"accuracy": 1 - wrong, "ari": 1 - 1.8 * wrong, "nmi": 1 - 1.4 * wrong, "rows_in_use": len(fake.tasks)}


def _points(
    fake: Fake, slots: list[dict[str, Any]], centres: dict[str, Any], number: int, rng: np.random.Generator
) -> dict[str, Any]:
    reach = number / fake.rounds
    points = []
    for slot in slots:
        at = centres[slot["task"]] * reach + 0.5 * rng.normal(size=64)
        points.append({k: slot[k] for k in ("client", "slot", "row", "task")} | {"at": [round(float(v), 4) for v in at]})
    used = sorted({slot["row"] for slot in slots})
    rows = [{"row": r, "at": np.mean([p["at"] for p in points if p["row"] == r], axis=0).tolist()} for r in used]
    return {"round": number, "points": points, "rows": rows}


def _summary(fake: Fake, logs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    last, sent = logs["evals"][-1], logs["rounds"][-1]
    tasks = {}
    for task, scores in last["tasks"].items():
        mine = [next(iter(s["metrics"].values())) for s in last["slots"] if s["task"] == task]
        tasks[task] = scores | {"slot_min": min(mine, default=None), "slot_max": max(mine, default=None), "n_slots": len(mine)}
    per = sent["total_up"] / fake.clients / fake.rounds
    return {
        "name": fake.name,
        "method": fake.method,
        "config_hash": f"hash-{fake.method}-{fake.lr}-{fake.seed}",
        "rounds": fake.rounds,
        "mean": last["mean"],
        "tasks": tasks,
        "clustering": last["clustering"],
        "parameters": {"adapter": ADAPTER, "head": HEAD, "total": ADAPTER + HEAD},
        "bytes": {
            "up": sent["total_up"],
            "down": sent["total_down"],
            "up_per_client_round": per,
            "down_per_client_round": per,
        },
        "steps_total": 10 * sent["jobs"] * fake.rounds,
        "seconds": {"total": 131.5, "train": 101.2, "eval": 25.1},
    }


def _config(fake: Fake) -> str:
    tables = "".join(
        f'\n[[tasks]]\nname = "{task}"\nmetrics = {json.dumps(METRICS.get(task, ("accuracy",)))}\n' for task in fake.tasks
    )
    return (
        f'name = "{fake.name}"\nseed = {fake.seed}\nrounds = {fake.rounds}\n\n[model]\nname = "asset:minilm"\n\n'
        f'[method]\nname = "{fake.method}"\nlr = {fake.lr}\n\n'
        f'[partition]\nhow = "dirichlet-task"\nclients = {fake.clients}\n{tables}'
    )


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
    here = Path(sys.argv[1])
    write_run(here / "fltac")
    write_run(here / "fedit", Fake(name="glue-fedit", method="fedit", clustered=False))
