"""cost: parameters and bytes of a configuration, from the model's sizes alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedquilt.cli import show
from fedquilt.cli.runs import Set, read_config
from fedquilt.errors import ConfigError

if TYPE_CHECKING:
    from fedquilt.report.table import Cell
    from fedquilt.runs.cost import Cost, Line

COLUMNS = ("method", "rank", "adapters", "adapter", "head", "total", "paper-style", "up", "down")


def cost(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A TOML file; none with --paper.")] = None,
    override: Set = None,
    fltac_rank: Annotated[int, typer.Option("--fltac-rank", min=1, help="Of FL-TAC beside another method.")] = 1,
    fedit_rank: Annotated[int, typer.Option("--fedit-rank", min=1, help="Of FedIT beside another method.")] = 16,
    paper: Annotated[bool, typer.Option("--paper", help="The three settings of the FL-TAC paper.")] = False,
    as_json: show.AsJson = False,
) -> None:
    """Count what FL-TAC, FedIT and full fine-tuning train and send; reads the model's sizes, no weights."""
    from fedquilt.runs.cost import cost as count
    from fedquilt.runs.cost import paper_costs

    if paper == (config is not None):
        raise ConfigError("give either a CONFIG or --paper", where="cost", fix="fedquilt cost CONFIG, or fedquilt cost --paper")
    if config is None:
        found = paper_costs()
    else:
        found = [count(read_config(config, override), fltac_rank=fltac_rank, fedit_rank=fedit_rank)]
    if as_json:
        records = [_record(one) for one in found]
        show.print_json(records if paper else records[0])
        return
    for one in found:
        _print(one)


def _print(cost: Cost) -> None:
    from fedquilt.report.table import Table

    classes = f", {cost.classes} classes" if cost.classes else ""
    show.print_pairs(
        {
            "model": f"{cost.shape.name} ({cost.shape.about})",
            "sizes from": cost.shape.source,
            "counted": f"{cost.use}, {cost.tasks} tasks{classes}; a client that holds all tasks, per round",
        }
    )
    show.print_table(Table(COLUMNS, tuple(_cells(line) for line in cost.lines)))
    for line in cost.lines:
        if line.paper and line.paper.quirk:
            typer.echo(f"paper-style {line.method}: {line.paper.quirk}")
    for note in cost.notes:
        typer.echo(f"note: {note}")
    typer.echo()


def _cells(line: Line) -> tuple[Cell, ...]:
    sizes: tuple[Cell, ...] = (line.rank or None, line.adapters, line.adapter, line.head, line.total)
    return (line.method, *sizes, line.paper.total if line.paper else None, show.size(line.up), show.size(line.down))


def _record(cost: Cost) -> dict[str, Any]:
    lines = [
        {
            "method": line.method,
            "rank": line.rank,
            "adapters": line.adapters,
            "exact": {"adapter": line.adapter, "head": line.head, "total": line.total},
            "paper": None if line.paper is None else {"total": line.paper.total, "quirk": line.paper.quirk},
            "bytes": {"up": line.up, "down": line.down},
        }
        for line in cost.lines
    ]
    model = {"name": cost.shape.name, "about": cost.shape.about, "source": cost.shape.source}
    return {
        "model": model,
        "use": cost.use,
        "tasks": cost.tasks,
        "classes": cost.classes,
        "methods": lines,
        "notes": list(cost.notes),
    }
