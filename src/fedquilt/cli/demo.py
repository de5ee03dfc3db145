"""demo: the main job, from nothing to a report."""

from __future__ import annotations

import time
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli import show
from fedquilt.cli.demos import DEMOS, Demo
from fedquilt.cli.interrupt import resumable
from fedquilt.cli.reports import print_summary
from fedquilt.errors import StateError


class Which(StrEnum):
    """The demonstrations."""

    text = "text"
    image = "image"
    llm = "llm"


def demo(
    which: Annotated[
        Which, typer.Argument(help="text: classification with a BERT; image: with a ViT; llm: instructions with SmolLM2.")
    ] = Which.text,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A new folder for the runs and reports. Default: runs/demo, runs/demo-image, runs/demo-llm."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round each: does it work here?")] = False,
) -> None:
    """FL-TAC, FedIT and local-only on real tasks and a real pre-trained model, then a report."""
    from fedquilt.report.build import report
    from fedquilt.report.compare import better, compare, load_runs
    from fedquilt.report.table import summary_rows
    from fedquilt.runs.config import load_config
    from fedquilt.runs.launch import run

    chosen = DEMOS[which.value]
    out = out or Path("runs") / ("demo" if which is Which.text else f"demo-{which.value}")
    _refuse_old(out, chosen)
    typer.echo(chosen.about)
    _fetch(chosen)
    begin = time.monotonic()
    folders = []
    small = ["rounds=1", "method.steps=1"] if quick else []
    with as_file(files("fedquilt") / "configs" / "demo") as configs:
        for name in chosen.runs:
            folder = out / name
            with resumable(folder) as progress:
                config = load_config(configs / f"{chosen.prefix}{name}.toml", small)
                folders.append(run(config, directory=folder, progress=progress))
    page = report(folders[0])
    comparison = compare(folders, out)
    data = load_runs(folders)
    print_summary(summary_rows(data), better(data))
    typer.echo(f"trained, evaluated and reported in {time.monotonic() - begin:.0f} s")
    typer.echo(f"report:     {page}\ncomparison: {comparison}")


def _refuse_old(out: Path, chosen: Demo) -> None:
    """Before anything is fetched."""
    from fedquilt.runs.store import begun

    old = [out / name for name in chosen.runs if begun(out / name)]
    if old:
        raise StateError(
            "the folder holds a demonstration already",
            where=str(out),
            why=f"there are runs in {', '.join(map(str, old))}",
            fix=f"remove it (rm -r {out}), or choose another folder with --out",
        )


def _fetch(chosen: Demo) -> None:
    """Download what the demonstration needs, once, so that the time below is training alone."""
    from fedquilt.data.assets import dataset, model_folder

    show.say(f"fetching the model and the data (once, about {chosen.megabytes} MB; kept in the cache) ...")
    model_folder(chosen.model, say=show.say)
    for name in chosen.data:
        dataset(name, say=show.say)
