"""toy: the simulation that motivates FL-TAC, in seconds and without a model."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fedquilt.cli import show
from fedquilt.errors import StateError


def toy(
    out: Annotated[Path, typer.Option("--out", help="A folder for toy.json, toy.csv and the figure.")] = Path("runs/toy"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Data sets and starts.")] = 10,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 1000,
    spread: Annotated[float, typer.Option("--spread", min=0.01, help="Standard deviation of the inputs.")] = 1.0,
    as_json: show.AsJson = False,
) -> None:
    """Compare one small network on two tasks with one per task: figure 3 of the FL-TAC paper."""
    from fedquilt.report.toy import panel
    from fedquilt.runs.toy import Setting, record

    setting = Setting(seeds=seeds, epochs=epochs, spread=spread)
    show.say(f"training {8 * len(setting.widths) * seeds} networks ...")
    begin = time.monotonic()
    result = record(setting)
    seconds = time.monotonic() - begin
    found = panel(result)
    written = _write(out, result, found)
    if as_json:
        show.print_json({**result, "seconds": seconds, "files": [str(path) for path in written]})
        return
    if found.table is not None:
        show.print_table(found.table, found.text)
    for name, one in result["activations"].items():
        least = one["floors"]
        typer.echo(
            f"least possible ({name}): {least['told']:.4f}, and {least['shared']:.4f} for a network that is not told the task"
        )
    typer.echo(f"trained in {seconds:.0f} s\nwritten: {', '.join(map(str, written))}")


def _write(folder: Path, result: dict[str, Any], found: Any) -> list[Path]:
    """JSON and CSV; the figure where matplotlib is installed."""
    from dataclasses import replace

    from fedquilt.report.paper import save_panels

    drawn = find_spec("matplotlib") is not None
    if not drawn:
        show.say("no figure: matplotlib is not installed (pip install 'fedquilt[viz]')")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "toy.json"
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")
        return [path, *save_panels([found if drawn else replace(found, picture=None)], folder)]
    except OSError as error:
        raise StateError(
            "cannot write the result", where=str(folder), why=str(error), fix="choose another folder with --out"
        ) from error
