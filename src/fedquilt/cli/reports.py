"""report and compare: the commands that read run directories."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedquilt.cli import show
from fedquilt.cli.runs import Run

if TYPE_CHECKING:
    from fedquilt.report.table import Table


class Projection(StrEnum):
    """How adapters are laid into the plane."""

    pca = "pca"
    umap = "umap"


def report(
    run: Run,
    projection: Annotated[Projection, typer.Option("--projection", help="umap shows PCA beside it.")] = Projection.pca,
    watch: Annotated[bool, typer.Option("--watch", help="Write again after every round until the run ends.")] = False,
    as_json: show.AsJson = False,
) -> None:
    """Write report.html and figures/ into a run directory."""
    from fedquilt.report.build import report as write
    from fedquilt.report.read import load_run
    from fedquilt.report.table import summary_rows

    load_run(run)  # complain before anybody watches
    if watch:
        show.say(f"watching {run}: open {run / 'report.html'} in a browser; Ctrl-C ends")
    page = write(run, projection=projection.value, watch=watch)
    data = load_run(run)
    summary = summary_rows([data])
    if as_json:
        show.print_json({"report": str(page), "figures": str(run / "figures"), "summary": summary.records()})
        return
    print_summary(summary, data.direction)
    typer.echo(f"report:  {page}\nfigures: {run / 'figures'}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option("--out", help="A folder to write compare.html and figures into.")] = None,
    as_json: show.AsJson = False,
) -> None:
    """Compare runs; those that differ in nothing but the seed become one line, mean ± sd; unfinished runs stand apart."""
    from fedquilt.report.compare import better, load_runs
    from fedquilt.report.compare import compare as write
    from fedquilt.report.table import summary_rows

    data = load_runs(runs)
    summary = summary_rows(data)
    page = write(runs, out) if out is not None else None
    if as_json:
        show.print_json({"compare": None if page is None else str(page), "runs": summary.records()})
        return
    print_summary(summary, better(data))
    if page is not None:
        typer.echo(f"comparison: {page}")


def print_summary(summary: Table, better: str = "") -> None:
    from fedquilt.report.table import COST_COLUMNS, score_columns

    show.print_table(summary.pick(score_columns(summary)), f"scores ({better})" if better else "scores")
    show.print_table(summary.pick(("run", *COST_COLUMNS)), "cost")
