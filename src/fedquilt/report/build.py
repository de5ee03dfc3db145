"""The report of one run: figures/ and report.html in its directory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedquilt.errors import StateError
from fedquilt.report import adaptermap, clustering, heatmap, results, scores, spread, training
from fedquilt.report.page import Fact, Page, write
from fedquilt.report.panel import Panel
from fedquilt.report.paper import save_panels
from fedquilt.report.project import Kind
from fedquilt.report.read import RunData, load_run
from fedquilt.report.table import run_name, show


def report(run: Path, *, projection: Kind = "pca", watch: bool = False, every: float = 10.0) -> Path:
    """Write ``figures/*.{png,svg,csv}`` and ``report.html`` into the run directory; return the path of the page.

    Args:
        projection: how adapters are laid into the plane. UMAP is shown with PCA beside it, because UMAP's distances mislead.
        watch: write again whenever the run has written something, until it ends.
        every: seconds between two looks while watching.

    Raises:
        StateError: not a run directory, or a corrupt one.
        ConfigError: a plotting package is not installed.
    """
    data = load_run(run)
    path = _write(data, projection, refresh=_refresh(data, watch, every))
    seen = _stamp(run)
    while watch and not data.finished:
        time.sleep(every)
        if _stamp(run) == seen:
            continue
        seen = _stamp(run)
        data = load_run(run)
        path = _write(data, projection, refresh=_refresh(data, watch, every))
    return path


def _refresh(data: RunData, watch: bool, every: float) -> int:
    return max(1, round(every)) if watch and not data.finished else 0


def _stamp(run: Path) -> list[tuple[str, int, int]]:
    """What the run has written: names, sizes and times of its logs (not of our own files)."""
    files = sorted([*run.glob("*.jsonl"), *run.glob("summary.json")])
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _write(data: RunData, projection: Kind, *, refresh: int) -> Path:
    panels = run_panels(data, projection)
    page = Page(
        title=run_name(data),
        subtitle=_subtitle(data),
        facts=_facts(data),
        settings=_settings(data),
        panels=panels,
        notes=_notes(data),
        sources=(("Configuration (config.toml)", data.config_text), ("Environment (env.json)", json.dumps(data.env, indent=2))),
        refresh=refresh,
    )
    try:
        save_panels(panels, data.path / "figures")
        return write(page, data.path / "report.html")
    except OSError as error:
        where, fix = str(error.filename or data.path), "free space and allow writing there, or report a copy of the run"
        raise StateError("the report cannot be written", where=where, why=str(error.strerror), fix=fix) from error


def run_panels(data: RunData, projection: Kind) -> tuple[Panel, ...]:
    """All sections in the order of the page."""
    kinds: tuple[Kind, ...] = ("umap", "pca") if projection == "umap" else ("pca",)
    maps = [adaptermap.panel(data, kind) for kind in kinds]
    first = [results.panel(data), scores.panel(data), spread.panel(data)]
    return (*first, *maps, clustering.panel(data), heatmap.panel(data), training.panel(data))


def _subtitle(data: RunData) -> str:
    method = data.setting("method.name", "method")
    clients = len(next(iter(data.counts.values()), ()))
    noun = "task" if len(data.tasks) == 1 else "tasks"
    return f"{method} on {data.setting('model.source', 'model.name', 'model')}, {len(data.tasks)} {noun}, {clients} clients"


def _notes(data: RunData) -> tuple[str, ...]:
    if data.finished:
        return data.notes
    return ("This run has not finished: the report shows what it has written so far.", *data.notes)


def _facts(data: RunData) -> tuple[Fact, ...]:
    last = data.evals[-1] if data.evals else None
    done = data.rounds[-1] if data.rounds else None
    facts = [
        Fact(
            "mean score",
            show(last.mean if last else None),
            f"over slots, after round {last.round}; {data.direction}" if last else "",
        )
    ]
    if last and last.clustering:
        detail = f"ARI {show(last.clustering.ari)}, NMI {show(last.clustering.nmi)}"
        facts.append(Fact("clustering accuracy", show(last.clustering.accuracy), detail))
    facts.append(Fact("rounds", show(done.round if done else 0), f"of {data.setting('rounds', default='?')}"))
    if done:
        up, down = done.total_up / 1e6, done.total_down / 1e6
        facts.append(Fact("payload", _size(up + down), f"{_size(up)} up, {_size(down)} down"))
    if data.summary:
        n = data.summary.parameters
        facts.append(Fact("adapter size", show(n.total), f"{show(n.adapter)} adapter + {show(n.head)} head numbers"))
    if data.summary and data.summary.seconds:
        s = data.summary.seconds
        facts.append(Fact("wall time", duration(s.total), f"{duration(s.train)} training, {duration(s.eval)} evaluation"))
    return tuple(facts)


def _size(megabytes: float) -> str:
    return f"{megabytes / 1e3:.2f} GB" if megabytes >= 1e3 else f"{megabytes:.2f} MB"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(7.25), duration(131.5), duration(7384)
    ('7.2 s', '2 min 11 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _settings(data: RunData) -> tuple[tuple[str, str], ...]:
    flat = data.flat()
    fixed: list[tuple[str, str]] = [("model", data.setting("model.source", "model.name", "model"))]
    fixed += [("seed", data.setting("seed")), ("partition", data.how)]
    if flat.get("secure_aggregation"):
        fixed.append(("server sees", "sums alone"))
    chosen = [(key, value) for key, value in flat.items() if key.startswith("method") and not isinstance(value, dict)]
    fixed += [(key.removeprefix("method.").replace("name", "method"), _short(value)) for key, value in chosen]
    if data.summary:
        steps = data.summary.steps_total
        fixed.append(("local steps, all clients", "not known here" if steps is None else f"{steps:,}"))
        fixed.append(("config hash", data.summary.config_hash[:16]))
    versions = data.env.get("packages", {})
    fixed += [(name, str(versions[name])) for name in ("fedquilt", "torch", "transformers", "peft") if name in versions]
    return tuple(fixed)


def _short(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
