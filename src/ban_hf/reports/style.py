"""How the pictures look, and what is written on all of them."""

import textwrap
from typing import Any

from matplotlib.figure import Figure

from ban_hf.lineage.results import Results

Picture = tuple[Figure, str]  # and its caption

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#00785A", "#767676", "#222222"
COLORS = (BLUE, ORANGE, GREEN, "#8A4FA0", "#8C6D1F", "#5A8FB8", "#B05A7A", "#6B8E23")
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
    characters = int(13.5 * figure.get_size_inches()[0])
    lines = textwrap.wrap(note, characters)
    width, height = figure.get_size_inches()
    head = 0.5 + 0.17 * len(lines)  # inches
    figure.set_size_inches(width, height + head)
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0.01, 0, 0.98, height / (height + head)))
    figure.text(0.15 / width, 1 - 0.12 / (height + head), title, va="top", size=14, weight="bold")
    top = 1 - 0.42 / (height + head)
    figure.text(0.15 / width, top, "\n".join(lines), va="top", size=9, color=GREY)


def how_sure(results: Results, *, of_differences: bool = False) -> str:
    """What the bars of the leading metric are, in words."""
    counts = {len(results.measured(r.name, c.name)) for r in results.rows for c in results.columns}
    most = max(counts, default=0)
    if most > 1:
        return f"standard deviation over {'up to ' * (len(counts - {0}) > 1)}{most} seeds"
    of_error = results.metric == "error" and not of_differences
    if of_error or any(entry.outcomes is not None for entry in results.entries):
        return "95 % interval over the test items, of one seed"
    return "none, since there is one seed and results of test items were not kept"


def axis_title(results: Results) -> str:
    """The leading metric, as the title of an axis."""
    unit = f" ({results.measure.unit})" if results.measure.unit else ""
    return f"Test {results.measure.title}{unit}"
