"""Fail when a core module's line or branch coverage is below the limit: ``coverage_gate.py COVERAGE_JSON [LIMIT]``.

The report is coverage.py's JSON with branches. Lines and branches are judged apart: one average of the two can hide an
untested branch behind many straight lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT = 95.0
CORE = (
    "tree",
    "types",
    "rng",
    "errors",
    "pick",
    "apply",
    "sample",
    "local",
    "wire",
    "assign",
    "reduce",
    "method",
    "gate",
    "runs/store",
)


def measure(files: Mapping[str, Any], target: str) -> tuple[float, float] | None:
    """(lines, branches) in percent of one module or package; None if the report has no file of it."""
    found = [
        entry["summary"]
        for name, entry in files.items()
        if (tail := name.replace("\\", "/").rpartition("src/fedquilt/")[2]) == f"{target}.py" or tail.startswith(f"{target}/")
    ]
    if not found:
        return None

    def percent(covered: str, total: str) -> float:
        whole = sum(summary[total] for summary in found)
        return 100.0 * sum(summary[covered] for summary in found) / whole if whole else 100.0

    return percent("covered_lines", "num_statements"), percent("covered_branches", "num_branches")


def main(arguments: list[str]) -> int:
    """Print one line per core module; 1 if any is below the limit or missing."""
    report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    limit = float(arguments[1]) if len(arguments) > 1 else LIMIT
    bad = 0
    print(f"coverage of the core (limit {limit:g} %)  lines  branches")
    for target in CORE:
        result = measure(report["files"], target)
        low = result is None or min(result) < limit
        bad += low
        text = "not in the report" if result is None else f"{result[0]:5.1f}     {result[1]:5.1f}"
        print(f"  {target:38} {text}{'   <- too low' if low else ''}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
