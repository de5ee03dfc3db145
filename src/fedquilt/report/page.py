"""One HTML file that needs no network: style, script, plotly.js and data are all inside it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from fedquilt.report.panel import Panel
from fedquilt.report.paper import missing
from fedquilt.report.table import Table, finite, show

MOST_ROWS = 1500  # of a table in the page; the CSV file has all


@dataclass(frozen=True)
class Fact:
    """A number of the header with what it is, and a second line under it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """A page before it is HTML.

    Attributes:
        facts: the row of large numbers.
        settings: small name-value pairs under them.
        notes: warnings in a box above everything.
        sources: (title, preformatted text) at the end, folded.
        refresh: seconds after which a browser loads the page again; 0 for never.
    """

    title: str
    subtitle: str
    facts: tuple[Fact, ...]
    settings: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    refresh: int = 0


def render(page: Page) -> str:
    """The whole document."""
    plots = {panel.slug: panel.picture.plot for panel in page.panels if panel.picture is not None}
    template = Template(_resource("page.html"))
    return template.substitute(
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        refresh=f'<meta http-equiv="refresh" content="{page.refresh}">' if page.refresh else "",
        style=_resource("page.css"),
        script=_resource("page.js"),
        plotly=_plotly() if plots else "",
        plots=_json(plots),
        nav="".join(f'<a href="#{escape(p.slug)}">{escape(p.title)}</a>' for p in page.panels),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in page.notes),
        facts="".join(_fact(fact) for fact in page.facts),
        settings="".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.settings),
        panels="".join(_panel(panel) for panel in page.panels),
        sources="".join(_folded(title, f"<pre>{escape(text)}</pre>") for title, text in page.sources),
    )


def write(page: Page, path: Path) -> Path:
    """Render into ``path``; a reader never sees half a file."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(render(page), encoding="utf-8")
    os.replace(draft, path)
    return path


def _resource(name: str) -> str:
    return (files("fedquilt.report") / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise missing("plotly", error) from error
    return str(get_plotlyjs())


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: no ``<``, and null for numbers that JSON does not have."""
    return json.dumps(finite(value), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _fact(fact: Fact) -> str:
    detail = f"<small>{escape(fact.detail)}</small>" if fact.detail else ""
    return f'<div class="fact"><span>{escape(fact.name)}</span><strong>{escape(fact.value)}</strong>{detail}</div>'


def _panel(panel: Panel) -> str:
    parts = [f'<section id="{escape(panel.slug)}"><h2>{escape(panel.title)}</h2><p>{escape(panel.text)}</p>']
    if panel.picture is not None:
        label = f"Figure: {panel.title}. The table below it holds its numbers."
        height = panel.picture.plot["layout"]["height"]
        style = f"min-height:{height}px"
        parts.append(
            f'<div class="plot" role="img" aria-label="{escape(label)}" data-plot="{escape(panel.slug)}" style="{style}"></div>'
        )
    if panel.table is not None:
        table = _table(panel.table)
        parts.append(table if panel.picture is None else _folded(f"Table ({_count(panel.table)})", table))
    return "".join([*parts, "</section>"])


def _count(table: Table) -> str:
    return f"{len(table.rows):,} row{'' if len(table.rows) == 1 else 's'}"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(table: Table) -> str:
    kinds = [' class="number"' if table.numeric(column) else "" for column in range(len(table.columns))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True))
    body = "".join(_table_row(row, kinds) for row in table.rows[:MOST_ROWS])
    more = len(table.rows) - MOST_ROWS
    cut = f'<p class="note">{more:,} more rows are in the CSV file in the figures folder.</p>' if more > 0 else ""
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{cut}'


def _table_row(row: Sequence[Any], kinds: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td{kind}>{escape(show(cell))}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>"
