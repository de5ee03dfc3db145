"""A federation of instruction tasks small enough for a test: three kinds of question in one file, four clients, a random Llama."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedquilt.runs.config import RunConfig, parse

# kind -> (instruction, context, response) of a number
KINDS = {
    "copy": ("say it again", "n{}", "n{}"),
    "greet": ("greet guest {}", "", "hi {}"),
    "sort": ("sort", "{}21", "12{}"),
}
CLIENTS = 4


def _rows() -> Iterator[dict[str, Any]]:
    for kind, texts in KINDS.items():
        for n in range(14):
            instruction, context, response = (text.format(n) for text in texts)
            owner = -1 if n % 7 == 6 else (n * 3 + len(kind)) % CLIENTS
            yield {"instruction": instruction, "context": context, "response": response, "kind": kind, "client": owner}


def text_config(folder: Path, method: str, model: str = "tiny:llama", /, **tables: Any) -> RunConfig:
    """A run of two rounds; the rows are written to ``folder``, whose client -1 is the evaluation split."""
    (folder / "all.jsonl").write_text("\n".join(json.dumps(row) for row in _rows()), encoding="utf-8")
    raw: dict[str, Any] = {
        "name": method,
        "rounds": 2,
        "threads": 1,
        "model": {"name": model, "max_length": 250},
        "adapter": {"rank": 2} if method != "centralised_full" else {},
        "method": {"name": method, "lr": 0.01, "steps": 2, "batch": 4, **tables.pop("method", {})},
        "tasks": [
            {
                "name": kind,
                "source": "file:all.jsonl",
                "kind": "generation",
                "prompt": "alpaca" if kind == "copy" else "chat",
                "where": {"kind": kind},
                "eval_where": {"client": -1},
            }
            for kind in KINDS
        ],
        "partition": {"how": "column", "column": "client", "clients": CLIENTS},
    }
    return parse({**raw, **tables}, folder)
