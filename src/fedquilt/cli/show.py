"""What commands print: results to stdout, everything else to stderr. Tables are for people, ``--json`` is for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedquilt.errors import FedquiltError

if TYPE_CHECKING:
    from rich.console import Console

    from fedquilt.report.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
WIDE = 400  # columns of a pipe: a table that is cut to 80 there is lost


def console() -> Console:
    """Of stdout, made when it is used: tests and pipes replace sys.stdout."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def complain(error: FedquiltError) -> None:
    """An error for people, in red where there are colours. Its text is never read as markup and never re-wrapped."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text(f"error: {error}", style="red"), soft_wrap=True)


def say(text: str) -> None:
    """A line to stderr."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """Strict JSON to stdout; numbers that JSON does not have are null."""
    from fedquilt.report.table import finite

    typer.echo(json.dumps(finite(value), indent=2, allow_nan=False, default=str))


def print_table(table: Table, title: str = "", *, most: int = 0) -> None:
    """A table; of more than ``most`` rows only so many are shown (0: all)."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    from fedquilt.report.table import show

    if title:
        typer.secho(title, bold=True)
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate(table.columns):
        rich.add_column(Text(name), justify="right" if table.numeric(place) else "left")
    shown = table.rows[:most] if most else table.rows
    for row in shown:
        rich.add_row(*(Text(show(cell)) for cell in row))
    out = console()
    out.print(rich)
    if len(shown) < len(table.rows):
        out.print(f"... and {len(table.rows) - len(shown):,} more; --json prints all")


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Name and value, one pair a line, aligned."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        typer.echo(f"{name:<{width}}  {value}")


def size(number: float) -> str:
    """Bytes for people, in powers of 1000 as networks and disks count.

    >>> size(12), size(5_378_000), size(1.5e10)
    ('12 B', '5.38 MB', '15.00 GB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number:.0f} B"
