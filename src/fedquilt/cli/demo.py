"""demo: the main job, from nothing to a report."""

from __future__ import annotations

import time
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
Ten clients hold four real text tasks whose labels mean different things (per task Dirichlet(0.5) over the clients).
  fltac         one rank-1 LoRA per local task; the server clusters the uploads without any task label and averages clusters
  fedit-steps   one rank-1 LoRA for everybody, the same number of local steps in mixed batches
  fedit-params  one rank-4 LoRA for everybody: as many parameters as fltac's four
  local         every client alone; nothing is sent
"""


def demo(
    out: Annotated[Path, typer.Option("--out", help="A new folder for the four runs and the reports.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="One short round each: does it work here?")] = False,
) -> None:
    """FL-TAC, FedIT (step-matched and parameter-matched) and local-only on four real tasks and a real BERT, then a report."""
    from fedquilt.report.build import report
    from fedquilt.report.compare import compare, load_runs
    from fedquilt.report.table import summary_rows
    from fedquilt.runs.config import load_config
    from fedquilt.runs.launch import run

    typer.echo(TEXT)
    _fetch()
    begin = time.monotonic()
    folders = []
    small = ["rounds=1", "method.steps=1"] if quick else []
    with as_file(files("fedquilt") / "configs" / "demo") as configs:
        for name in RUNS:
            folder = out / name
            with resumable(folder):
                folders.append(run(load_config(configs / f"{name}.toml", small), directory=folder, progress=make_progress()))
    page = report(folders[0])
    comparison = compare(folders, out)
    print_summary(summary_rows(load_runs(folders)))
    typer.echo(f"trained, evaluated and reported in {time.monotonic() - begin:.0f} s")
    typer.echo(f"report:     {page}\ncomparison: {comparison}")


def _fetch() -> None:
    """Download what the demonstration needs, once, so that the time below is training alone."""
    from fedquilt.data.assets import dataset, model_folder

    show.say("fetching the model and the data (once, about 110 MB; kept in the cache) ...")
    model_folder("minilm", say=show.say)
    for name in ("vader_tweet", "vader_tweet_strength", "vader_review_domain", "exam_dental"):
        dataset(name, say=show.say)
