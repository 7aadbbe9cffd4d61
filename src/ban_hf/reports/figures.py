"""The pictures of a table's report, ours beside the paper's wherever the paper has numbers.

Each `draw_*`, here and in the modules that this one imports, takes a `View` of the results and the
rows of the picture; it returns the figure and its caption, or None where the results do not have
what it takes.
"""

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ban_hf.lineage.family_results import Results
from ban_hf.reports.dot_figures import draw_ablation, draw_table
from ban_hf.reports.figure_style import (
    DASHES,
    LABEL,
    PAPER,
    Page,
    Picture,
    View,
    equal_spans,
    head_panel,
    series,
)
from ban_hf.reports.network_figures import draw_agreement, draw_gradient, draw_reliability
from ban_hf.reports.plotting import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Label,
    Series,
    draw_series,
    save_png,
    style_axes,
    write_labels,
    write_values,
)

SHIFT = 0.04  # of a place; keeps the bars of two lines beside, not on, one another
ABOVE, BELOW = (0, 9), (0, -16)  # where a line's values are written, points
SINGLE, STACKED = 3.6, 2.3  # height of a row's panels where it is alone and where it is not
GAP = 0.85  # below it, for its tick labels and the next one's heading


def write_figures(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw every picture that the results have the numbers for.

    Args:
        results: a table's, see `reports.statistics`.
        folder: where the PNG files go, each whole or not at all.

    Returns:
        File names and captions, in the order of a report.
    """
    view, written = View(results), []
    for name, (draw, together) in PICTURES.items():
        rows = list(view.rows)
        is_one = len(rows) <= together
        for group in [rows] if is_one else [[row] for row in rows]:
            if (picture := draw(view, group)) is None:
                continue
            figure, caption = picture
            file = f"{name}.png" if is_one else f"{name}-{group[0]}.png"
            save_png(figure, folder / file)
            written.append(
                (file, caption if is_one else f"{view.row_heading(group[0])}: {caption}")
            )
    return written


def draw_generations(view: View, rows: Sequence[str]) -> Picture | None:
    """The metric by generation, a row of the table below the other."""
    columns = view.line("generations")
    ticks = [textwrap.fill(view.heading(column), 10) for column in columns]
    title = f"{view.measure.title.capitalize()} by generation"
    figure = _draw_lines(view, rows, {"": columns}, (title, "", ticks))
    if figure is None:
        return None
    says = (
        f"Test {view.measure.title} by generation, {view.seeds(rows)}; dashed: the first teacher."
    )
    return figure, says + _paper(figure)


def draw_ensembles(view: View, rows: Sequence[str]) -> Picture | None:
    """The metric by the size of an ensemble, born-again and label-trained."""
    lines = view.lines("ensembles")
    sizes = [str(1 + k) for k in range(max(map(len, lines.values()), default=0))]
    title = f"{view.measure.title.capitalize()} by size of the ensemble"
    figure = _draw_lines(view, rows, lines, (title, "Networks in the ensemble", sizes))
    if figure is None:
        return None
    kinds = " and ".join(name.lower() for name in lines)
    says = f"Test {view.measure.title} by the number of networks whose predictions are averaged, "
    return figure, f"{says}{kinds}, {view.seeds(rows)}.{_paper(figure)}"


def _paper(figure: Figure) -> str:
    """What a caption says of the panels on the right, if there are any."""
    there = any(axes.get_title(loc="left") == PAPER for axes in figure.axes)
    return " Right: the paper's values, on their own axis." if there else ""


def _draw_lines(
    view: View,
    rows: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    words: tuple[str, str, Sequence[str]],
) -> Figure | None:
    """A row of the table below the other, ours on the left; None if no line has two points."""
    title, axis_title, ticks = words
    rows_drawn = [row for row in rows if _series_of(view, row, lines)]
    if not rows_drawn:
        return None
    height = SINGLE if len(rows) == 1 else STACKED
    page = Page(title, view.note(rows), (height + GAP) * len(rows_drawn) + 0.1)
    panels: dict[bool, list[tuple[Axes, list[Series]]]] = {True: [], False: []}
    for k, (row, is_ours) in enumerate(itertools.product(rows_drawn, (True, False))):
        if not (drawn := _series_of(view, row, lines, is_ours=is_ours)):
            continue
        left, width = (0.85, 3.75) if is_ours else (6.3, 3.1)
        axes = page.panel(left, 0.3 + k // 2 * (height + GAP), width, height)
        for one in drawn:
            draw_series(axes, one)
        _style(axes, ticks)
        axes.set_xlabel(axis_title, color=INK, fontsize=10)
        if is_ours:
            axes.set_ylabel(view.axis_title, color=INK, fontsize=10.5)
        heading = "Ours" if len(rows) == 1 else view.row_heading(row)
        head_panel(axes, heading if is_ours else PAPER, is_ours=is_ours)
        panels[is_ours].append((axes, drawn))
    for is_ours, group in panels.items():
        equal_spans([axes for axes, _ in group])
        for axes, drawn in group:
            _write_on(axes, drawn, height, is_ours=is_ours)
    return page.figure


def _series_of(
    view: View, row: str, lines: Mapping[str, Sequence[str]], *, is_ours: bool = True
) -> list[Series]:
    """The lines that have at least two points; one without a name is the generations'."""
    drawn = []
    for k, (name, columns) in enumerate(lines.items()):
        read = view.value if is_ours else view.paper
        shift = SHIFT * (2 * k - len(lines) + 1) if is_ours else 0.0
        values = {place + shift: read(row, column) for place, column in enumerate(columns)}
        look = (BLUE, "o") if not name else ((ORANGE, GREY)[k % 2], "D")
        style = {"line": ":" if k else "-", "width": 2 if is_ours else 1.2}
        drawn.append(series(name, look if is_ours else (GREY, look[1]), values, **style))
    drawn = [one for one in drawn if len(one.places) > 1]
    highest: dict[int, float] = {}  # of the lines' means at a place
    for one in drawn:
        for place, mean in zip(map(round, one.places), one.means, strict=True):
            highest[place] = max(mean, highest.get(place, mean))
    for one in drawn:  # at each place the upper value is written above, the lower one below
        means = zip(map(round, one.places), one.means, strict=True)
        one.value_offsets = [BELOW if mean < highest[place] else ABOVE for place, mean in means]
    return drawn


def _style(axes: Axes, ticks: Sequence[str]) -> None:
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.margins(y=0.22)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    style_axes(axes)
    axes.tick_params(labelsize=9.5)


def _write_on(axes: Axes, drawn: Sequence[Series], height: float, *, is_ours: bool) -> None:
    """Write values and labels, once the axes are as they will be; draw the teacher's level."""
    labels: list[Label] = [(one.means[-1], one.label, one.colour) for one in drawn if one.label]
    for one in drawn:
        if not one.label and one.places[0] == 0:
            axes.axhline(one.means[0], color=INK, linewidth=1, linestyle=DASHES, zorder=1)
            labels.append((one.means[0], "First teacher", INK))
        write_values(axes, one)
    write_labels(axes, labels if is_ours else [], LABEL / height)


PICTURES: dict[str, tuple[Callable[[View, Sequence[str]], Picture | None], int]] = {
    # and how many rows of a table share one
    "table": (draw_table, 99),
    "generations": (draw_generations, 4),
    "ensembles": (draw_ensembles, 4),
    "ablation": (draw_ablation, 1),
    "reliability": (draw_reliability, 1),
    "agreement": (draw_agreement, 1),
    "gradient": (draw_gradient, 1),
}
