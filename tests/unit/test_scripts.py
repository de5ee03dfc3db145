"""The developer's scripts: the coverage gate judges, and every script is executable, strict, and says how it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if path.suffix == ""), ROOT / ".ci" / "run"]


def gate(folder: Path, lines: tuple[int, int], branches: tuple[int, int], leave_out: str = "") -> subprocess.CompletedProcess[str]:
    """Run the gate on a report in which ``assign`` has these (covered, total) and everything else is full."""
    full = {"covered_lines": 9, "num_statements": 9, "covered_branches": 4, "num_branches": 4}
    names = [f"{name}.py" for name in ("tree", "types", "rng", "errors", "pick", "apply", "sample", "method", "gate", "runs/store")]
    names += [f"{name}/__init__.py" for name in ("local", "wire", "reduce", "assign")]
    files = {f"src/fedquilt/{name}": {"summary": full} for name in names if name != leave_out}
    files["src/fedquilt/assign/kmeans.py"] = {
        "summary": {
            "covered_lines": lines[0],
            "num_statements": lines[1],
            "covered_branches": branches[0],
            "num_branches": branches[1],
        }
    }
    files["src/fedquilt/report/gate.py"] = {"summary": {**full, "covered_lines": 0}}  # no core module: not judged
    report = folder / "coverage.json"
    report.write_text(json.dumps({"files": files}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "scripts" / "coverage_gate.py"), str(report)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_gate_passes_a_report_at_the_limit(tmp_path: Path) -> None:
    done = gate(tmp_path, (86, 91), (91, 96))  # with the full __init__: 95 of 100 lines, 95 of 100 branches
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("lines", "branches"), [((85, 91), (96, 96)), ((91, 91), (90, 96))])
def test_gate_judges_lines_and_branches_apart_over_a_whole_package(
    tmp_path: Path, lines: tuple[int, int], branches: tuple[int, int]
) -> None:
    done = gate(tmp_path, lines, branches)
    assert done.returncode == 1
    low = [line.split()[0] for line in done.stdout.splitlines() if "too low" in line]
    assert low == ["assign"]


def test_gate_fails_when_a_core_module_is_missing(tmp_path: Path) -> None:
    done = gate(tmp_path, (91, 91), (96, 96), leave_out="gate.py")
    assert done.returncode == 1
    assert "not in the report" in done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_strict(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_constraints_pin_one_version_of_every_name() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = [line.split("==")[0].lower().replace("_", "-") for line in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert len(set(names)) == len(names)
    assert "torch==2.13.0" in lines
