"""data inspect, data partition: look at the data before any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedquilt.cli import show
from fedquilt.cli.runs import MOST_CLIENTS, Config, Seed, Set, read_config

if TYPE_CHECKING:
    from fedquilt.data.load import RawTask
    from fedquilt.report.table import Cell

app = typer.Typer(help="Look at the data of a configuration.", no_args_is_help=True)


@app.command()
def inspect(config: Config, override: Set = None, seed: Seed = None, as_json: show.AsJson = False) -> None:
    """Load every task and show its size, labels and what was left out."""
    from fedquilt.runs.build import load_tasks

    raws = load_tasks(read_config(config, override, seed))
    records = [_describe(raw) for raw in raws.values()]
    if as_json:
        show.print_json(records)
        return
    from fedquilt.report.table import Table

    columns = ("task", "kind", "train", "evaluation", "metrics", "labels (share of the training rows)")
    rows = [(r["task"], r["kind"], r["train"], r["evaluation"], ", ".join(r["metrics"]), _labels(r)) for r in records]
    show.print_table(Table(columns, tuple(rows)))
    for record in records:
        for note in record["notes"]:
            typer.echo(f"note: {record['task']}: {note}")


@app.command()
def partition(
    config: Config,
    override: Set = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option("--out", help='Save it; a run takes it with partition.how = "file".')] = None,
    as_json: show.AsJson = False,
) -> None:
    """Show which client gets how many training examples of which task."""
    from fedquilt.report.table import Table
    from fedquilt.runs.build import load_tasks, make_partition

    resolved = read_config(config, override, seed)
    found = make_partition(resolved, load_tasks(resolved))
    if out is not None:
        found.save(out)
    counts = found.counts()
    if as_json:
        show.print_json(
            {"how": found.how, "counts": counts, "notes": list(found.notes), "saved": None if out is None else str(out)}
        )
        return
    tasks = sorted(counts)
    rows: list[tuple[Cell, ...]] = [
        (str(client), *(counts[task][client] for task in tasks), sum(counts[task][client] for task in tasks))
        for client in range(found.clients)
    ]
    show.print_table(Table(("client", *tasks, "together"), tuple(rows)), f"partition: {found.how}", most=MOST_CLIENTS)
    for note in found.notes:
        typer.echo(f"note: {note}")
    if out is not None:
        typer.echo(f"saved: {out}")


def _describe(raw: RawTask) -> dict[str, Any]:
    record: dict[str, Any] = {"task": raw.name, "kind": raw.kind, "train": len(raw.train), "evaluation": len(raw.evaluation)}
    record |= {"metrics": list(raw.metrics), "labels": None, "range": None, "notes": list(raw.notes)}
    values = raw.train.labels.tolist()
    if raw.kind == "generation":
        return record
    if raw.kind == "classification":
        record["labels"] = {name: values.count(number) for number, name in enumerate(raw.labels)}
    else:
        record["range"] = [min(values), max(values)]
    return record


def _labels(record: dict[str, Any]) -> str:
    if record["labels"] is None and record["range"] is None:
        return "–"
    if record["labels"] is None:
        low, high = record["range"]
        return f"{low:g} to {high:g}"
    shares = [f"{name} {count / max(1, record['train']):.0%}" for name, count in record["labels"].items()]
    return ", ".join(shares[:8]) + (f", ... {len(shares)} in all" if len(shares) > 8 else "")
