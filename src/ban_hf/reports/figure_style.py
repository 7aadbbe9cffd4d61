"""What the pictures of a table have in common: how its results are read, and how a page looks."""

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ban_hf.lineage.family_results import Results, mean_of, spread
from ban_hf.lineage.results import MEASURES
from ban_hf.reports.plotting import BLUE, GREEN, GREY, INK, ORANGE, Series

Entry = Mapping[str, Any]
Picture = tuple[Figure, str]  # and its caption

SPREAD = "mean ± standard deviation over"
PAPER = "The paper"  # heads its panels
COLOURS = (BLUE, ORANGE, GREEN, "#8A4FA0", "#8C6D1F")  # of students, in their order
WIDTH = 9.6  # inches, of every picture
LINE = 116  # characters of a note that fit into the width

DASHES = (0, (5, 4))
LABEL = 0.21  # height of a label beside a line, with its distance to the next; inches


class View:
    """A table's results, read by row and column; what is missing is empty or None."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.measure = MEASURES[results["metric"]]
        self.rows = {row["name"]: row for row in results["rows"]}
        self.columns = {column["name"]: column for column in results["columns"]}
        self._entries: dict[tuple[str, str], dict[int, Entry]] = defaultdict(dict)
        for entry in sorted(results["entries"], key=lambda entry: entry["seed"]):
            self._entries[entry["row"], entry["column"]][entry["seed"]] = entry

    def entries(self, row: str, column: str) -> dict[int, Entry]:
        """By seed."""
        return self._entries.get((row, column), {})

    def seed_values(self, row: str, column: str) -> dict[int, float]:
        """The metric of the test set by seed."""
        values = {
            seed: mean_of(entry["test"].get(self.results["metric"]))
            for seed, entry in self.entries(row, column).items()
        }
        return {seed: value for seed, value in values.items() if value is not None}

    def value(self, row: str, column: str) -> dict[str, Any] | None:
        """The metric of the test set as `Series` takes it: `mean`, `std` and `values`."""
        return spread(self.seed_values(row, column).values())

    def paper(self, row: str, column: str) -> float | None:
        """The paper's value."""
        return mean_of((self.rows[row].get("paper") or {}).get(column))

    def line(self, name: str) -> list[str]:
        """The columns of a picture, those alone that the table has; empty if it has none."""
        columns = (self.results.get("figures") or {}).get(name) or []
        return [column for column in columns if column in self.columns]

    def lines(self, name: str) -> dict[str, list[str]]:
        """The columns of a picture of several lines, by the lines' names."""
        lines = (self.results.get("figures") or {}).get(name) or {}
        return {k: [c for c in columns if c in self.columns] for k, columns in lines.items()}

    def heading(self, column: str) -> str:
        return str(self.columns[column]["heading"])

    def row_heading(self, row: str) -> str:
        return str(self.rows[row]["heading"])

    @property
    def axis_title(self) -> str:
        unit = f" ({self.measure.unit})" if self.measure.unit else ""
        return f"Test {self.measure.title}{unit}"

    def seeds(self, rows: Sequence[str], how: str = SPREAD) -> str:
        """How many seeds there are and what of them is drawn, in words."""
        counts = {len(self.entries(row, column)) for row in rows for column in self.columns} - {0}
        most = max(counts, default=0)
        if most < 2:
            return "one seed"
        return f"{how} {'up to ' * (len(counts) > 1)}{most} seeds"

    def note(self, rows: Sequence[str], *more: str, how: str = SPREAD) -> str:
        """What stands below a picture's title: table, row, seeds and budget."""
        row = [self.row_heading(rows[0])] if len(rows) == 1 else []
        budget = (self.results.get("budget") or {}).get("says")
        parts = [
            self.results["title"],
            *row,
            self.seeds(rows, how),
            *more,
            *([budget] if budget else []),
        ]
        return " · ".join(parts)


def series(label: str, look: tuple[str, str], values: Mapping[float, Any], **style: Any) -> Series:
    """A line through the values that are known, by their places."""
    known = {place: value for place, value in values.items() if value is not None}
    return Series(label, *look, list(known), list(known.values()), **style)


class Page:
    """A figure with a title and a note, and below them panels that are placed in inches.

    Args:
        title: in bold.
        note: below it, in as many lines as it takes.
        height: of the body, inches.
    """

    def __init__(self, title: str, note: str, height: float) -> None:
        lines = textwrap.wrap(note, LINE)
        self.head = 0.8 + 0.19 * len(lines)
        self.height = self.head + height
        self.figure = Figure(figsize=(WIDTH, self.height), dpi=150, facecolor="white")
        self.text(0.5, 0.45 - self.head, title, fontsize=15, fontweight="bold", color=INK)
        self.text(0.5, 0.58 - self.head, "\n".join(lines), va="top", fontsize=10, color=GREY)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes, their top so many inches below the top of the body."""
        bottom = self.height - self.head - top - height
        box = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write a text, inches from the left and below the top of the body."""
        at = (left / WIDTH, 1 - (self.head + top) / self.height)
        self.figure.text(*at, text, **{"fontsize": 10, "color": INK, **style})


def head_panel(axes: Axes, text: str, *, is_ours: bool = True) -> None:
    """Write above axes whose values they show."""
    colour = INK if is_ours else GREY
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=colour, pad=9)


def equal_spans(panels: Sequence[Axes]) -> None:
    """Let a difference be as high in each of the panels, whatever level it is at."""
    limits = [axes.get_ylim() for axes in panels]
    half = max((high - low for low, high in limits), default=0) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
