"""The pictures of a family's or a table's results.

Each picture shows how sure its numbers are: with one seed the 95 % interval over the test items,
with several the seeds' standard deviation. Its axis covers at least `LEAST_BARS` of the widest of
these bars, so that noise does not look like an effect.

Each `draw_*` takes the results and the rows of the picture. It returns the figure and its caption,
or None where the results lack the numbers. Figures are objects, without matplotlib's global state:
they need no display and disturb no notebook.
"""

import math
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ban_hf.errors import BANError
from ban_hf.lineage.results import Column, Results
from ban_hf.reports.network_figures import draw_agreement, draw_gradient, draw_reliability
from ban_hf.reports.statistics import (
    Estimate,
    best_possible,
    estimate,
    half_width,
    is_measured,
    paired_difference,
)
from ban_hf.reports.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    STYLE,
    Picture,
    axis_title,
    how_sure,
    titled,
)
from ban_hf.reports.tables import subtitle

LEAST_BARS = 3  # widths of the widest bar that an axis covers at least
LEAST_SHARE = 0.2  # of the level, where no bar is known
ROOM = 0.12  # of the axis, above and below what is drawn
GAP = 1.0  # between the generations of two methods, in generations
SHIFT = 0.07  # of a generation, keeps two bars at one place apart


@dataclass(frozen=True)
class Points:
    """One line of a picture.

    Attributes:
        label: in the legend.
        places: on the axis.
        values: at these places, with how sure they are.
        style: of matplotlib.
    """

    label: str
    places: Sequence[float]
    values: Sequence[Estimate]
    style: Mapping[str, Any]


def write_figures(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw every picture that the results have the numbers for, and remove older ones.

    Args:
        results: of a family or a table.
        folder: where the PNG files go, each whole or not at all.

    Returns:
        File names and captions, in the order of a report.
    """
    pictures = FAMILY_PICTURES if results.is_family else TABLE_PICTURES
    written = []
    for name, (draw, together) in pictures.items():
        rows = [row.name for row in results.rows]
        is_one = len(rows) <= together
        for group in [rows] if is_one else [[row] for row in rows]:
            with matplotlib.rc_context(STYLE):
                if (picture := draw(results, group)) is None:
                    continue
                file = f"{name}.png" if is_one else f"{name}-{group[0]}.png"
                save_png(picture[0], folder / file)
            caption = picture[1]
            heading = results.row(group[0]).heading
            written.append((file, caption if is_one else f"{heading}: {caption}"))
    drawn = {name for name, _ in written}
    for name in pictures:  # of other rows or columns, by an earlier command
        for path in (folder / f"{name}.png", *folder.glob(f"{name}-*.png")):
            if path.name not in drawn and path.stem not in pictures:
                path.unlink(missing_ok=True)
    return written


def save_overview(results: Results, path: str | os.PathLike[str]) -> None:
    """Draw a family's results by generation as a PNG file.

    Raises:
        BANError: if no network has a value of the leading metric: there is nothing to draw.
    """
    with matplotlib.rc_context(STYLE):
        picture = draw_overview(results, [results.rows[0].name])
        if picture is None:
            raise BANError(
                f"results has no test {results.measure.title} of any generation, so that there is "
                "nothing to draw: give train_generations a test_dataset."
            )
        save_png(picture[0], path)


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save a picture, whole or not at all."""
    partial = Path(f"{os.fspath(path)}.partial")  # a killed run leaves the old picture whole
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def look(**style: Any) -> dict[str, Any]:
    """How a line looks, in matplotlib's words."""
    return style


def draw_points(axes: Axes, line: Points, *, horizontal: bool = False) -> None:
    """Draw a line with its bars, and the single seeds as faint dots."""
    means = [value.mean for value in line.values]
    bars = [half_width(value) or (0.0, 0.0) for value in line.values]
    reach = [[low for low, _ in bars], [high for _, high in bars]]
    style = look(capsize=3, elinewidth=1.2, markersize=6, zorder=3) | dict(line.style)
    if horizontal:
        axes.errorbar(means, line.places, xerr=reach, label=line.label, **style)
    else:
        axes.errorbar(line.places, means, yerr=reach, label=line.label, **style)
    for place, value in zip(line.places, line.values, strict=True):
        if len(value.values) > 1:
            dots = [[place] * len(value.values), value.values]
            axes.plot(
                *(reversed(dots) if horizontal else dots), ".", color=style["color"], alpha=0.3
            )


def axis_range(
    values: Iterable[Estimate], levels: Iterable[float] = (), *, signed: bool = False
) -> tuple[float, float]:
    """The range of an axis that does not magnify noise.

    It covers the values with their bars and the levels, and at least `LEAST_BARS` widths of the
    widest bar; where no bar is known, `LEAST_SHARE` of the level. It begins at 0 where it would
    reach below, unless values are `signed`.
    """
    ends, widths, found = [*levels], [0.0], [*values]
    for value in found:
        low, high = half_width(value) or (0.0, 0.0)
        ends += [value.mean - low, value.mean + high, *value.values]
        widths.append(low + high)
    middle, span = (min(ends) + max(ends)) / 2, max(ends) - min(ends)
    least = LEAST_BARS * max(widths) if max(widths) else LEAST_SHARE * abs(middle)
    half = max(span * (1 + 2 * ROOM), least, 1e-6) / 2
    low, high = middle - half, middle + half
    return (low, high) if signed or low > 0 else (0.0, high - low)


def paper_range(values: Iterable[float], ours: tuple[float, float]) -> tuple[float, float]:
    """The range of the paper's axis: a difference is no larger on it than on ours."""
    ends = [*values]
    middle, span = (min(ends) + max(ends)) / 2, max(ends) - min(ends)
    half = max(span * (1 + 2 * ROOM), ours[1] - ours[0]) / 2
    return middle - half, middle + half


def _estimates(results: Results, row: str, columns: Sequence[str]) -> dict[str, Estimate]:
    found = {name: estimate(results, row, name) for name in columns}
    return {name: value for name, value in found.items() if value is not None}


def draw_overview(results: Results, rows: Sequence[str]) -> Picture | None:
    """A family by generation: its networks, its ensembles, and controls of equal cost."""
    (row,) = rows
    networks = [c for c in results.columns if c.kind in ("labels", "student")]
    if not networks or not is_measured(results):
        return None
    values = _estimates(results, row, [column.name for column in results.columns])
    places = _places(networks)
    lines = _network_lines(networks, places, values)
    lines += _ensemble_lines(results.columns, places, values)
    width = max(7.5, 2.5 + 0.75 * max(places.values()))
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        draw_points(axes, line)
    first, levels = values.get(networks[0].name), []
    if first is not None and len(networks) > 1:
        axes.axhline(
            first.mean, color=INK, lw=1, ls="--", zorder=1, label=f"Level of {networks[0].heading}"
        )
    best, limits, told = best_possible(results), axis_range(values.values()), ""
    if best is not None and best > limits[0] - (limits[1] - limits[0]):
        axes.axhline(best, color=GREEN, lw=1.2, label=f"Best possible: {best:.2f}")
        levels.append(best)
    elif best is not None:  # far off the axis
        told = f" · best possible: {best:.2f}"
    axes.set_ylim(axis_range(values.values(), levels))
    ticks = [textwrap.fill(column.heading, 9) for column in networks]
    axes.set_xticks([places[column.name] for column in networks], ticks)
    axes.set_xlim(-0.5, max(places.values()) + 0.5)
    axes.set_ylabel(axis_title(results))
    axes.legend()
    bars = f" · bars: {how_sure(results)}" if len(results.seeds) < 2 else ""
    titled(figure, results.title, subtitle(results) + told + bars)
    says = f"Test {results.measure.title} by generation. Bars: {how_sure(results)}."
    return figure, says


def _places(networks: Sequence[Column]) -> dict[str, float]:
    """Where each network is on the horizontal axis, with a gap between methods."""
    places, at, before = {}, -1.0, networks[0].method
    for column in networks:
        at += 1 + GAP * (column.method != before)
        before = column.method
        places[column.name] = at
    return places


def _network_lines(
    networks: Sequence[Column], places: Mapping[str, float], values: Mapping[str, Estimate]
) -> list[Points]:
    """The generations, a line for each method; the first one alone if there are several methods."""
    lines = []
    for k, method in enumerate(dict.fromkeys(column.method for column in networks)):
        names = [c.name for c in networks if c.method == method and c.name in values]
        label = "" if k else "Born-again generations" if len(networks) > 1 else "Trained on labels"
        style = look(color=BLUE, marker="o", lw=2)
        own = [values[name] for name in names]
        lines.append(Points(label, [places[name] for name in names], own, style))
    return [line for line in lines if line.values]


def _ensemble_lines(
    columns: Sequence[Column], places: Mapping[str, float], values: Mapping[str, Estimate]
) -> list[Points]:
    """The ensembles, each at its last member; controls at what they are compared with."""
    at = {(c.method, c.generation): places[c.name] for c in columns if c.name in places}
    ensembles = [c for c in columns if c.kind == "ensemble" and c.name in values]
    by_method: dict[str | None, list[Column]] = {}
    for column in ensembles:
        by_method.setdefault(column.method, []).append(column)
    lines = []
    for k, (method, own) in enumerate(by_method.items()):
        known = [c for c in own if (method, c.generation) in at]
        style = look(color=ORANGE, marker="D", lw=2)
        where = [at[method, c.generation] + SHIFT for c in known]
        label = "" if k else "Their ensembles"
        lines.append(Points(label, where, [values[c.name] for c in known], style))
    controls = [c for c in columns if c.kind == "control" and c.name in values]
    again = [values[c.name] for c in controls if c.size == 1]
    where = [-2 * SHIFT * (1 + k) for k in range(len(again))]
    style = look(color=GREY, marker="s", ls="none")
    lines.append(Points("Labels again", where, again, style))
    sizes = {c.size: c for c in controls if c.size > 1}
    pairs = [(at[c.method, c.generation], sizes[c.size]) for c in ensembles if c.size in sizes]
    style = look(color=GREY, marker="D", lw=1.5, ls=":")
    together = [values[control.name] for _, control in pairs]
    where = [place - SHIFT for place, _ in pairs]
    lines.append(Points("Ensembles of label-trained networks", where, together, style))
    return [line for line in lines if line.values]


def draw_table(results: Results, rows: Sequence[str]) -> Picture | None:
    """Every number of the paper's table as a dot: ours on the left, the paper's on the right."""
    columns = [column for column in results.columns if column.in_paper]
    lines = [(row, column) for row in rows for column in columns]
    ours = {(r, c.name): v for r, c in lines if (v := estimate(results, r, c.name)) is not None}
    if not ours:
        return None
    ticks, places, at = {}, {}, 0
    for row in rows:
        if len(rows) > 1:  # the heading of a single row is in the subtitle
            ticks[at] = results.row(row).heading
            at += 1
        for column in columns:
            ticks[at], places[row, column.name] = f"{column.heading}", at
            at += 1
    paper = {
        (row, column.name): value
        for row, column in lines
        if (value := results.row(row).paper.get(column.name)) is not None
    }
    figure = Figure(figsize=(8.5, 1.6 + 0.26 * at), layout="constrained")
    panels = figure.subplots(1, 2 if paper else 1, squeeze=False, sharey=True)[0]
    for column in columns:
        keys = [key for key in ours if key[1] == column.name]
        color = _color(column, columns[0])
        style = look(color=color, marker="o", ls="none")
        if column is columns[0]:
            style["markerfacecolor"] = "white"
        line = Points("", [places[key] for key in keys], [ours[key] for key in keys], style)
        draw_points(panels[0], line, horizontal=True)
        theirs = [key for key in paper if key[1] == column.name]
        if paper:
            xs, ys = [paper[key] for key in theirs], [places[key] for key in theirs]
            style |= {"zorder": 3, "markersize": 6}
            panels[1].plot(xs, ys, **style)
    panels[0].set_xlim(axis_range(ours.values()))
    if paper:
        panels[1].set_xlim(paper_range(paper.values(), panels[0].get_xlim()))
    panels[0].set_yticks(list(ticks), list(ticks.values()))
    headings = panels[0].get_yticklabels()
    for place, text in zip(ticks, headings, strict=True):
        text.set_fontweight("normal" if place in places.values() else "bold")
    panels[0].set_ylim(at - 0.4, -0.6)
    for axes, heading in zip(panels, ("Ours", "The paper"), strict=False):
        axes.set_title(heading, loc="left")
        axes.set_xlabel(axis_title(results))
        axes.grid(axis="y", visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    _note(figure, results, rows, "The table at a glance")
    beside = " beside the paper's single runs, each on its own axis" if paper else ""
    return (
        figure,
        f"Test {results.measure.title} of every row and column of the paper's table: ours{beside}. "
        f"Bars: {how_sure(results)}.",
    )


def _color(column: Column, first: Column) -> str:
    return INK if column is first else ORANGE if column.kind == "ensemble" else BLUE


def _note(
    figure: Figure,
    results: Results,
    rows: Sequence[str],
    title: str,
    *,
    of_differences: bool = False,
) -> None:
    """Title, and below it table, row, bars and budget."""
    row = [results.row(rows[0]).heading] if len(rows) == 1 and not results.is_family else []
    budget = [results.budget.says] if results.budget is not None else []
    bars = how_sure(results, of_differences=of_differences)
    parts = [results.title, *row, f"bars: {bars}", *budget]
    titled(figure, title, " · ".join(parts))


def draw_generations(results: Results, rows: Sequence[str]) -> Picture | None:
    """The metric by generation, a row of the table below the other."""
    columns = [c for c in results.figures.generations if _has(results, c)]
    ticks = [textwrap.fill(results.column(name).heading, 10) for name in columns]
    title = f"{results.measure.title.capitalize()} by generation"
    figure = _draw_lines(results, rows, {"": columns}, (title, "", ticks))
    if figure is None:
        return None
    says = f"Test {results.measure.title} by generation; dashed: the first teacher."
    return figure, f"{says} Bars: {how_sure(results)}.{_beside(results, rows, columns)}"


def draw_ensembles(results: Results, rows: Sequence[str]) -> Picture | None:
    """The metric by the size of an ensemble, born-again and label-trained."""
    figures = results.figures.ensembles
    lines = {k: [c for c in columns if _has(results, c)] for k, columns in figures.items()}
    sizes = [str(1 + k) for k in range(max(map(len, lines.values()), default=0))]
    title = f"{results.measure.title.capitalize()} by size of the ensemble"
    figure = _draw_lines(results, rows, lines, (title, "Networks in the ensemble", sizes))
    if figure is None:
        return None
    kinds = " and ".join(name.lower() for name in lines)
    says = f"Test {results.measure.title} by the number of networks whose predictions are averaged"
    columns = [column for line in lines.values() for column in line]
    return figure, f"{says}, {kinds}. Bars: {how_sure(results)}.{_beside(results, rows, columns)}"


def _has(results: Results, column: str) -> bool:
    return any(column == one.name for one in results.columns)


def _beside(results: Results, rows: Sequence[str], columns: Sequence[str]) -> str:
    known = any(_paper_line(results, row, columns) for row in rows)
    return " Right: the paper's single runs, on their own axis." if known else ""


def _paper_line(results: Results, row: str, columns: Sequence[str]) -> dict[float, float]:
    """The paper's values by place, where there are two at least."""
    paper = results.row(row).paper
    known = {float(k): v for k, c in enumerate(columns) if (v := paper.get(c)) is not None}
    return known if len(known) > 1 else {}


def _draw_lines(
    results: Results,
    rows: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    words: tuple[str, str, Sequence[str]],
) -> Figure | None:
    """A row of the table below the other, ours on the left; None if no line has two points."""
    title, axis, ticks = words
    found = {row: drawn for row in rows if (drawn := _lines_of(results, row, lines))}
    if not found:
        return None
    beside = [row for row in found for c in lines.values() if _paper_line(results, row, c)]
    size = (8.5 if beside else 6.5, 1.3 + 2.6 * len(found))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(found), 2 if beside else 1, squeeze=False)
    spans = [axis_range(v for line in drawn for v in line.values) for drawn in found.values()]
    half = max(high - low for low, high in spans) / 2  # a difference is as high in every row
    for (row, drawn), axes, (low, high) in zip(found.items(), panels, spans, strict=True):
        for line in drawn:
            draw_points(axes[0], line)
        if not drawn[0].label and drawn[0].places[0] == 0:
            axes[0].axhline(drawn[0].values[0].mean, color=INK, lw=1, ls="--", zorder=1)
        axes[0].set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
        axes[0].set_ylabel(axis_title(results))
        axes[0].set_title("Ours" if len(found) == 1 else results.row(row).heading, loc="left")
        if drawn[0].label:
            axes[0].legend()
        paper: list[float] = []
        for k, columns in enumerate(lines.values()):
            if theirs := _paper_line(results, row, columns):
                style = look(color=GREY, ls=":" if k else "-", marker="o")
                axes[1].plot([*theirs], [*theirs.values()], **style)
                paper += theirs.values()
        if paper:
            axes[1].set_ylim(paper_range(paper, axes[0].get_ylim()))
        for own, heading in zip(axes[1:], ("The paper",), strict=False):
            own.set_title(heading, loc="left", color=GREY)
        for own in axes:
            own.set_xticks(range(len(ticks)), ticks)
            own.set_xlim(-0.4, len(ticks) - 0.6)
            own.set_xlabel(axis)
    _note(figure, results, [*found], title)
    return figure


def _lines_of(results: Results, row: str, lines: Mapping[str, Sequence[str]]) -> list[Points]:
    """The lines that have at least two points; one without a name is the generations'."""
    drawn = []
    for k, (name, columns) in enumerate(lines.items()):
        known = _estimates(results, row, columns)
        shift = SHIFT / 2 * (2 * k - len(lines) + 1)
        places = [columns.index(column) + shift for column in known]
        color = BLUE if not name else (ORANGE, GREY)[k % 2]
        style = look(color=color, marker="D" if name else "o", lw=2, ls=":" if k else "-")
        drawn.append(Points(name, places, [*known.values()], style))
    return [line for line in drawn if len(line.places) > 1]


def draw_ablation(results: Results, rows: Sequence[str]) -> Picture | None:
    """What each way to train a student changes, compared with the teacher of its seed."""
    (row,) = rows
    teacher, *students = results.figures.ablation or ("",)
    found = {c: paired_difference(results, row, c, teacher) for c in students if _has(results, c)}
    ours = {column: value for column, value in found.items() if value is not None}
    if not ours:
        return None
    figure = Figure(figsize=(7.5, 1.6 + 0.34 * len(ours)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, lw=1, ls="--", zorder=1)
    style = look(color=BLUE, marker="o", ls="none")
    line = Points("ours", range(len(ours)), [*ours.values()], style)
    draw_points(axes, line, horizontal=True)
    papers = results.row(row).paper
    level = papers.get(teacher)
    theirs = {
        k: value - level
        for k, column in enumerate(ours)
        if level is not None and (value := papers.get(column)) is not None
    }
    if theirs:
        style = look(color=GREY, marker="o", ls="none", markerfacecolor="white")
        axes.plot([*theirs.values()], [*theirs], label="the paper", **style)
        axes.legend()
    axes.set_xlim(axis_range(ours.values(), [0.0, *theirs.values()], signed=True))
    axes.set_yticks(range(len(ours)), [results.column(column).heading for column in ours])
    axes.set_ylim(len(ours) - 0.4, -0.6)
    heading = results.column(teacher).heading
    unit = results.measure.leading.unit
    axes.set_xlabel(f"Test {results.measure.title} minus that of {heading} ({unit})")
    _note(figure, results, rows, f"Difference to {heading}", of_differences=True)
    hollow = "; hollow: the paper's differences" if theirs else ""
    return (
        figure,
        f"Test {results.measure.title} of each student minus that of {heading} in its seed"
        f"{hollow}. Bars: {how_sure(results, of_differences=True)}.",
    )


Draw = Callable[[Results, Sequence[str]], Picture | None]

#: File name: how it is drawn, and how many rows of a table share one picture.
TABLE_PICTURES: dict[str, tuple[Draw, float]] = {
    "table": (draw_table, math.inf),
    "generations": (draw_generations, 4),
    "ensembles": (draw_ensembles, 4),
    "ablation": (draw_ablation, 1),
    "reliability": (draw_reliability, 1),
    "agreement": (draw_agreement, 1),
    "gradient": (draw_gradient, 1),
}
FAMILY_PICTURES: dict[str, tuple[Draw, float]] = {
    "results": (draw_overview, 1),
    "results-ensembles": (draw_ensembles, 1),
    "results-ablation": (draw_ablation, 1),
    "results-reliability": (draw_reliability, 1),
    "results-agreement": (draw_agreement, 1),
    "results-gradient": (draw_gradient, 1),
}
