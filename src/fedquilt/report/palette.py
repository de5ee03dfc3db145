"""Colours and shapes that stay apart for colour-blind readers and in grey print; the same in every figure of a report."""

from __future__ import annotations

# Okabe & Ito (2008), "Color Universal Design", without black and with the yellow (1.3:1 on white) left out; then dark
# members of Paul Tol's muted scheme (technical note SRON/EPS/TN/09-002, 2021) for more than six.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#332288",
    "#882255",
    "#999933",
    "#117733",
)
INK, MUTED, GRID, PAPER = "#1f2933", "#616e7c", "#e4e7eb", "#ffffff"
# Colour is never the only channel: (plotly symbol, matplotlib marker).
SHAPES = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("cross", "P"),
    ("x", "X"),
    ("triangle-down", "v"),
    ("star", "*"),
    ("pentagon", "p"),
    ("hexagon", "h"),
    ("triangle-left", "<"),
    ("triangle-right", ">"),
)
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"))
# ColorBrewer Blues without its near-white end, which would look like "nothing"; lightness falls evenly.
SEQUENTIAL = ("#d6e6f4", "#abd0e6", "#6aaed6", "#3787c0", "#105ba4", "#08306b")


def colour(place: int) -> str:
    """The colour of the place-th task, run or measure; repeats after ten."""
    return COLOURS[place % len(COLOURS)]


def symbol(place: int) -> str:
    """Its plotly symbol."""
    return SHAPES[place % len(SHAPES)][0]


def marker(place: int) -> str:
    """Its matplotlib marker: the same shape."""
    return SHAPES[place % len(SHAPES)][1]


def dash(place: int) -> tuple[str, str]:
    """Its (plotly, matplotlib) line style: changes when the colours begin again."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def faded(place: int, alpha: float) -> str:
    """The colour as CSS ``rgba()``."""
    red, green, blue = (int(colour(place)[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
