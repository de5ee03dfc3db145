"""demo: the main job, from nothing to a report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli import show
from fedquilt.cli.progress import make_progress
from fedquilt.cli.reports import print_summary
from fedquilt.cli.runs import resumable

RUNS = ("fltac", "fedit-steps", "fedit-params", "local")
TEXT = """\
Ten clients hold {tasks} whose labels mean different things (per task Dirichlet(0.5) over the clients).
  fltac         one rank-1 LoRA per local task; the server clusters the uploads without any task label and averages clusters
  fedit-steps   one rank-1 LoRA for everybody, the same number of local steps in mixed batches
  fedit-params  one rank-{count} LoRA for everybody: as many parameters as fltac's {count}
  local         every client alone; nothing is sent
"""


class Which(StrEnum):
    """The demonstrations."""

    TEXT = "text"
    IMAGE = "image"


@dataclass(frozen=True)
class Demo:
    """What one of them shows and needs; ``configs/demo/<prefix><run>.toml`` are its runs."""

    prefix: str
    tasks: str
    count: int
    model: str
    sets: tuple[str, ...]
    megabytes: int


DEMOS = {
    Which.TEXT: Demo(
        "",
        "four real text tasks",
        4,
        "minilm",
        ("vader_tweet", "vader_tweet_strength", "vader_review_domain", "exam_dental"),
        110,
    ),
    Which.IMAGE: Demo(
        "image-",
        "three tasks on real images of digits",
        3,
        "vit-s14",
        ("mnist_digit", "mnist_parity", "mnist_loop"),
        92,
    ),
}


def demo(
    which: Annotated[Which, typer.Argument(help="Texts and a BERT, or images and a ViT.")] = Which.TEXT,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A new folder for the runs and reports. Default: runs/demo, runs/demo-image."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round each: does it work here?")] = False,
) -> None:
    """FL-TAC, FedIT (step-matched and parameter-matched) and local-only on real tasks and a real transformer, then a report."""
    from fedquilt.report.build import report
    from fedquilt.report.compare import compare, load_runs
    from fedquilt.report.table import summary_rows
    from fedquilt.runs.config import load_config
    from fedquilt.runs.launch import run

    chosen = DEMOS[which]
    out = out or Path("runs") / ("demo" if which is Which.TEXT else f"demo-{which}")
    typer.echo(TEXT.format(tasks=chosen.tasks, count=chosen.count))
    _fetch(chosen)
    begin = time.monotonic()
    folders = []
    small = ["rounds=1", "method.steps=1"] if quick else []
    with as_file(files("fedquilt") / "configs" / "demo") as configs:
        for name in RUNS:
            folder = out / name
            config = load_config(configs / f"{chosen.prefix}{name}.toml", small)
            with resumable(folder):
                folders.append(run(config, directory=folder, progress=make_progress()))
    page = report(folders[0])
    comparison = compare(folders, out)
    print_summary(summary_rows(load_runs(folders)))
    typer.echo(f"trained, evaluated and reported in {time.monotonic() - begin:.0f} s")
    typer.echo(f"report:     {page}\ncomparison: {comparison}")


def _fetch(chosen: Demo) -> None:
    """Download what the demonstration needs, once, so that the time below is training alone."""
    from fedquilt.data.assets import dataset, model_folder

    show.say(f"fetching the model and the data (once, about {chosen.megabytes} MB; kept in the cache) ...")
    model_folder(chosen.model, say=show.say)
    for name in chosen.sets:
        dataset(name, say=show.say)
