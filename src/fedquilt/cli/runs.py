"""run, resume, export: the commands that train or write adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedquilt.cli import show
from fedquilt.cli.interrupt import resumable

if TYPE_CHECKING:
    from fedquilt.runs.config import RunConfig
    from fedquilt.runs.plan import Plan

MOST_CLIENTS = 40  # lines of the plan's table on a screen

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value; may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Short for --set seed=N.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def run(
    config: Config,
    override: Set = None,
    seed: Seed = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="The run directory. Default: runs/NAME, with --seed runs/NAME-seed-N.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show what it would cost, train nothing.")] = False,
    as_json: show.AsJson = False,
) -> None:
    """Train: read CONFIG, partition the data, run all rounds, evaluate, export the adapters."""
    resolved = read_config(config, override, seed)
    if dry_run:
        from fedquilt.runs.plan import plan

        show.say("loading data and model ...")
        _print_plan(resolved, plan(resolved), as_json)
        return
    from fedquilt.runs import launch

    suffix = "" if seed is None else f"-seed-{seed}"
    folder = directory or Path("runs") / f"{resolved.name}{suffix}"
    with resumable(folder) as progress:
        launch.run(resolved, directory=folder, progress=progress)
    print_result(folder, as_json)


def resume(run: Run, as_json: show.AsJson = False) -> None:
    """Continue an interrupted run; the result is the same as without the interruption."""
    from fedquilt.runs import launch

    with resumable(run) as progress:
        launch.resume(run, progress=progress)
    print_result(run, as_json)


def export(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", help="Default: the adapters folder of the run.")] = None,
    as_json: show.AsJson = False,
) -> None:
    """Write every adapter of a run as a folder that peft (or transformers) opens."""
    from fedquilt.runs.export import export as write

    folders = [str(folder) for folder in write(run, out)]
    if as_json:
        show.print_json({"folders": folders})
    else:
        typer.echo("\n".join(folders))


def route(run: Run, as_json: show.AsJson = False) -> None:
    """Let a run choose the adapter of every evaluation example without being told its task; writes router.json
    and adapters/router.safetensors."""
    from fedquilt.report.table import Table
    from fedquilt.runs.router import route as evaluate

    record = evaluate(run)
    if as_json:
        show.print_json(record)
        return
    rows = []
    for task, entry in record["tasks"].items():
        metric = next(iter(entry["told"]))
        rows.append((task, entry["row"], entry["right"], metric, entry["routed"][metric], entry["told"][metric]))
    show.print_table(Table(("task", "row", "routed to it", "metric", "routed", "told the task"), tuple(rows)))


def read_config(path: Path, override: list[str] | None, seed: int | None = None) -> RunConfig:
    """The configuration with its overrides; a seed of its own option wins."""
    from fedquilt.runs.config import load_config

    return load_config(path, [*(override or []), *([] if seed is None else [f"seed={seed}"])])


def print_result(folder: Path, as_json: bool) -> None:
    """What a finished run comes to."""
    from fedquilt.report.read import load_run
    from fedquilt.report.results import panel

    data = load_run(folder)
    if as_json:
        show.print_json({"run": str(folder), "summary": json.loads((folder / "summary.json").read_text(encoding="utf-8"))})
        return
    found = panel(data)
    if found.table is not None:
        show.print_table(found.table, data.setting("name"))
    typer.echo(f"run directory: {folder}\nfigures:       fedquilt report {folder}")


def _print_plan(config: RunConfig, plan: Plan, as_json: bool) -> None:
    if as_json:
        show.print_json({"config": config.model_dump(mode="json", exclude_none=True), "plan": _plan_record(plan)})
        return
    from fedquilt.report.table import Table

    typer.echo(f"# the resolved configuration\n{config.to_toml()}")
    if plan.rows:
        columns = tuple(plan.rows[0])
        rows = [(str(row["client"]), *(row[name] for name in columns[1:])) for row in plan.rows]
        show.print_table(Table(columns, tuple(rows)), "training examples per client and task", most=MOST_CLIENTS)
    show.print_pairs(_plan_pairs(plan))
    for note in plan.notes:
        typer.echo(f"note: {note}")


def _plan_record(plan: Plan) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(plan)


def _plan_pairs(plan: Plan) -> dict[str, str]:
    sizes = plan.parameters
    return {
        "method": plan.method,
        "clients, slots": f"{plan.clients:,}, {plan.slots:,}",
        "numbers per adapter": f"{sizes['adapter']:,} adapter + {sizes['head']:,} head = {sizes['total']:,}",
        "up per client and round": _span(list(plan.up.values())),
        "down per client and round": _span(list(plan.down.values())),
        "local steps in all": f"{plan.steps:,}",
        "memory, roughly": show.size(plan.memory),
    }


def _span(values: list[int]) -> str:
    if not values:
        return "nothing"
    low, high = show.size(min(values)), show.size(max(values))
    return low if low == high else f"{low} to {high}, mean {show.size(sum(values) / len(values))}"
