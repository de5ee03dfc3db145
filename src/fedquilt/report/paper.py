"""Panels as PNG, SVG and CSV files. Object-oriented matplotlib only: no window system, no global figure list."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedquilt.errors import ConfigError
from fedquilt.report.palette import INK, MUTED
from fedquilt.report.panel import Panel, Picture

# hashsalt and fonttype: the same run gives the same SVG, byte for byte, with text that stays text
STYLE: Any = {
    "svg.hashsalt": "fedquilt",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "legend.fontsize": 9,
}


def save_panels(panels: Iterable[Panel], folder: Path) -> list[Path]:
    """Write ``<slug>.png``, ``.svg`` (where there is a picture) and ``.csv`` (where there is a table); return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for panel in panels:
        if panel.table is not None:
            written.append(folder / f"{panel.slug}.csv")
            written[-1].write_text(panel.table.csv(), encoding="utf-8")
        if panel.picture is not None:
            written += _save(panel.title, panel.picture, folder / panel.slug)
    return written


def _save(title: str, picture: Picture, stem: Path) -> list[Path]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing("matplotlib", error) from error

    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with rc_context(STYLE):
        figure = Figure(figsize=picture.inches, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        picture.draw(figure)
        figure.savefig(png, dpi=160, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def missing(package: str, error: ModuleNotFoundError) -> ConfigError:
    """The error for a plotting package that is not installed."""
    return ConfigError(f"a report needs {package}, which is not installed", why=str(error), fix="pip install 'fedquilt[viz]'")
