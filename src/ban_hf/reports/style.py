"""How the pictures look, and what is written on all of them."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from ban_hf.lineage.results import Results

Picture = tuple[Figure, str]  # and its caption

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#00785A", "#767676", "#222222"
COLORS = (BLUE, ORANGE, GREEN, "#8A4FA0", "#8C6D1F", "#5A8FB8", "#B05A7A", "#6B8E23")
LEVEL: Any = {"color": INK, "lw": 1, "ls": "--", "zorder": 1}  # a line to compare with
#: Of matplotlib, for every picture.
STYLE: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#BBBBBB",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EAEAEA",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def titled(figure: Figure, title: str, note: str) -> None:
    """Write a title in bold and a note below it, in as many lines as the width takes."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(note, int(13.5 * width))  # characters
    head = 0.5 + 0.17 * len(lines)  # inches
    figure.set_size_inches(width, height + head)
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0.01, 0, 0.98, height / (height + head)))
    figure.text(0.15 / width, 1 - 0.12 / (height + head), title, va="top", size=14, weight="bold")
    top = 1 - 0.42 / (height + head)
    figure.text(0.15 / width, top, "\n".join(lines), va="top", size=9, color=GREY)


def asked_for(results: Results, columns: Iterable[str]) -> list[str]:
    """Those columns of a picture that were asked for."""
    known = {column.name for column in results.columns}
    return [name for name in columns if name in known]


def facts(results: Results, rows: Sequence[str], *more: str) -> str:
    """The line below a title: the table, the row where it is the only one, and more."""
    row = [results.row(rows[0]).heading] if len(rows) == 1 and not results.is_family else []
    return " · ".join([results.title, *row, *more])
