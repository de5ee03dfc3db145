"""doctor: what this installation and machine are, and what is wrong with them. Imports none of the heavy packages."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from fedquilt.cli import show
from fedquilt.errors import ConfigError

# extra -> the modules that it brings; what lacks one of them is not installed
EXTRAS = {"viz": ("matplotlib", "plotly", "umap"), "flower": ("flwr",), "dp": ("dp_accounting",), "quant": ("bitsandbytes",)}
LITTLE_MEMORY, LITTLE_DISK = 2e9, 2e9  # bytes: a 22-million-number model with its data needs about 1 GB of either


@dataclass(frozen=True)
class Problem:
    """Something to be fixed; ``broken``: a run cannot work."""

    what: str
    fix: str
    broken: bool = False


def doctor(as_json: show.AsJson = False) -> None:
    """Show versions, machine, extras and the cache folder, and say how to fix what is wrong."""
    facts, problems = examine()
    if as_json:
        show.print_json({"facts": facts, "problems": [vars(problem) for problem in problems]})
    else:
        for section, pairs in facts.items():
            typer.secho(section, bold=True)
            show.print_pairs({f"  {name}": str(value) for name, value in pairs.items()})
        typer.secho("problems", bold=True)
        for problem in problems:
            typer.secho(f"  {problem.what}", fg="red" if problem.broken else "yellow")
            typer.echo(f"    fix: {problem.fix}")
        if not problems:
            typer.echo("  none")
    if any(problem.broken for problem in problems):
        raise typer.Exit(1)


def examine() -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """(section -> name -> value, problems)."""
    problems: list[Problem] = []
    facts = {
        "versions": _versions(problems),
        "machine": _machine(problems),
        "extras": _extras(),
        "cache": _cache(problems),
    }
    return facts, problems


def _versions(problems: list[Problem]) -> dict[str, str]:
    found = {"python": platform.python_version(), "fedquilt": _installed("fedquilt") or "not installed"}
    if found["fedquilt"] == "not installed":
        problems.append(
            Problem("fedquilt is imported but not installed, so its methods are not registered", "pip install fedquilt", True)
        )
        return found
    for line in requires("fedquilt") or ():
        needed = re.match(r"([A-Za-z0-9._-]+)(?:>=([\d.]+))?", line)
        if needed is None or "extra ==" in line:
            continue
        name, lowest = needed.groups()
        have = _installed(name)
        found[name] = have or "not installed"
        if have is None or (lowest and _numbers(have) < _numbers(lowest)):
            problems.append(
                Problem(f"{name} is {found[name]}, {lowest or 'any version'} or later is needed", f"pip install -U {name}", True)
            )
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` -> (2, 13, 0)."""
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in leading.group().split(".")) if leading else ()


def _machine(problems: list[Problem]) -> dict[str, str]:
    from fedquilt.models.onednn import VARIABLE, pays

    try:
        library = "oneDNN" if pays() else "as torch makes them"
    except ConfigError as error:
        library = "unknown"
        problems.append(Problem(error.what, f"unset {VARIABLE}", True))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads and not threads.isdigit():
        problems.append(Problem(f"OMP_NUM_THREADS is '{threads}', not a number", "unset OMP_NUM_THREADS"))
    elif threads and int(threads) > cores:
        problems.append(Problem(f"OMP_NUM_THREADS is {threads} on {cores} cores: slow", f"export OMP_NUM_THREADS={cores}"))
    memory = memory_bytes()
    if memory is not None and memory < LITTLE_MEMORY:
        problems.append(Problem(f"only {show.size(memory)} of memory", "use a small model, cohort = 1, or another machine"))
    free = shutil.disk_usage(Path.cwd()).free
    if free < LITTLE_DISK:
        problems.append(
            Problem(f"only {show.size(free)} free in {Path.cwd()}, where runs are written", "free space, or run --dir elsewhere")
        )
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(cores),
        "float32 products": library,
        "threads": f"OMP_NUM_THREADS={threads}" if threads else f"OMP_NUM_THREADS is not set: {cores}",
        "python": sys.executable,
        "memory": "unknown" if memory is None else show.size(memory),
        "disk free here": show.size(free),
    }


def memory_bytes(limits: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What this process may use: the machine's memory, or the container's limit if that is less."""
    known = []
    if "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2, cgroup 1
        limit = limits / name
        text = limit.read_text().strip() if limit.is_file() else ""
        known += [int(text)] if text.isdigit() else []
    return min(known, default=None)


def _extras() -> dict[str, str]:
    found = {}
    for name, modules in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        found[name] = "installed" if not lacking else f"without {', '.join(lacking)}: pip install 'fedquilt[{name}]'"
    return found


def _cache(problems: list[Problem]) -> dict[str, str]:
    from fedquilt.data.files import default_cache

    folder = default_cache()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problems.append(Problem(f"the cache folder {folder} cannot be written", "export FEDQUILT_CACHE=a folder you own", True))
    elif shutil.disk_usage(existing).free < LITTLE_DISK:
        problems.append(Problem(f"little space for the cache folder {folder}", "export FEDQUILT_CACHE=a folder with space"))
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    hub = ", ".join(offline) + " set: nothing is downloaded from the hub" if offline else "hub downloads allowed"
    return {"folder": str(folder), "used": show.size(used), "network": hub}
