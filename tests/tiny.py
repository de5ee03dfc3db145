"""A federation small enough for a test: three text tasks, four clients, a random two-layer BERT."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedquilt.runs.config import RunConfig, parse

# task -> training rows of each client. Unequal, client 2 has one example of "colour", not every client has every task.
SIZES: dict[str, dict[int, int]] = {
    "colour": {0: 9, 1: 5, 2: 1},
    "mood": {0: 4, 1: 7, 3: 6},
    "size": {1: 3, 2: 8, 3: 5},
}
# task -> label -> words that give it away.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {"blue": ("sea sky", "sky"), "red": ("rose", "fire rose fire")},
    "mood": {"bad": ("no!", "no no no"), "good": ("yes", "yes yes!")},
    "size": {"large": ("xx xxxx", "xxxxx"), "medium": ("mm", "mm m"), "small": ("i", "i i . i")},
}
LORA = ("fltac", "fedit", "local_only", "centralised_lora")


def write_tasks(folder: Path) -> list[dict[str, Any]]:
    """``<task>-train.csv`` and ``<task>-dev.csv`` in ``folder``; returns the ``[[tasks]]`` tables."""
    tables: list[dict[str, Any]] = []
    for name, words in WORDS.items():
        _write(folder / f"{name}-train.csv", words, [client for client, n in SIZES[name].items() for _ in range(n)])
        _write(folder / f"{name}-dev.csv", words, [0] * 7)
        tables.append({"name": name, "source": f"file:{name}-{{split}}.csv", "eval_split": "dev", "labels": list(words)})
    return tables


def _write(path: Path, words: Mapping[str, tuple[str, ...]], clients: list[int]) -> None:
    labels = list(words)
    with path.open("w", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["text", "label", "client"])
        for i, client in enumerate(clients):
            label = labels[i % len(labels)]
            rows.writerow([words[label][(i // len(labels)) % 2], label, f"client-{client}"])


def tiny_config(tmp_path: Path, method: str, /, **overrides: Any) -> RunConfig:
    """A run of ``method`` over the tiny federation, its csv files written to ``tmp_path``.

    ``overrides`` are merged into the tables: ``tiny_config(tmp_path, "fedit", rounds=1, method={"lr": 0.1})``.
    """
    raw: dict[str, Any] = {
        "name": method,
        "rounds": 2,
        "threads": 1,
        "model": {"name": "tiny:bert", "max_length": 24},
        "adapter": {"rank": 2} if method in LORA else {},
        "method": {"name": method, "lr": 0.01, "steps": 2, "batch": 4},
        "tasks": write_tasks(tmp_path),
        "partition": {"how": "column", "column": "client", "clients": len({c for own in SIZES.values() for c in own})},
    }
    return parse(_merged(raw, overrides), tmp_path)


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in more.items():
        out[key] = _merged(out[key], value) if isinstance(value, Mapping) and isinstance(out.get(key), dict) else value
    return {key: value for key, value in out.items() if value is not None}
