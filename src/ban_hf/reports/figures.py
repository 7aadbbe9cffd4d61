"""The pictures of a family's or a table's results.

Each picture shows how sure its numbers are: with one seed the 95 % interval over the test items,
with several the seeds' standard deviation. Its axis covers at least `LEAST_BARS` of the widest of
these bars, so that noise does not look like an effect.

Each `draw_*` takes the results and the rows of the picture. It returns the figure and its caption,
or None where the results lack the numbers. Figures are objects, without matplotlib's global state:
they need no display and disturb no notebook.
"""

import io
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ban_hf.errors import BANError
from ban_hf.lineage.files import write_bytes
from ban_hf.lineage.results import Column, Results
from ban_hf.reports.network_figures import draw_agreement, draw_gradient, draw_reliability
from ban_hf.reports.statistics import (
    Estimate,
    best_possible,
    estimate,
    is_measured,
    paired_difference,
)
from ban_hf.reports.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LEVEL,
    ORANGE,
    STYLE,
    Picture,
    asked_for,
    facts,
    titled,
)
from ban_hf.reports.tables import subtitle

LEAST_BARS = 3  # widths of the widest bar that an axis covers at least
LEAST_SHARE = 0.2  # of the level, where no bar is known
ROOM = 0.12  # of the axis, above and below what is drawn
GAP = 1.0  # between the generations of two methods, in generations
SHIFT = 0.07  # of a generation, keeps two bars at one place apart
NETWORKS = ("labels", "student")  # kinds of columns


@dataclass(frozen=True)
class Points:
    """One line of a picture."""

    label: str
    points: Sequence[tuple[float, Estimate]]  # places on the axis, and what is measured there
    style: Mapping[str, Any]  # of matplotlib


def write_figures(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw every picture that the results have the numbers for, and remove older ones.

    Returns the names and captions of the PNG files, which are written whole or not at all.
    """
    pictures = FAMILY_PICTURES if results.is_family else TABLE_PICTURES
    rows, written = [row.name for row in results.rows], {}
    for name, (draw, together) in pictures.items():
        is_one = len(rows) <= together
        for group in [rows] if is_one else [[row] for row in rows]:
            with matplotlib.rc_context(STYLE):
                if (picture := draw(results, group)) is None:
                    continue
                file = f"{name}.png" if is_one else f"{name}-{group[0]}.png"
                _save(picture[0], folder / file)
            heading = "" if is_one else f"{results.row(group[0]).heading}: "
            written[file] = heading + picture[1]
    for name in pictures:  # of other rows or columns, by an earlier command
        for path in (folder / f"{name}.png", *folder.glob(f"{name}-*.png")):
            if path.name not in written and path.stem not in pictures:
                path.unlink(missing_ok=True)
    return [*written.items()]


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
        _save(picture[0], Path(path))


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(path, content.getvalue())


def draw_points(axes: Axes, line: Points, *, horizontal: bool = False) -> None:
    """Draw a line with its bars, and the single seeds as faint dots."""
    places, values = [place for place, _ in line.points], [value for _, value in line.points]
    means, bars = [value.mean for value in values], [reach(value) for value in values]
    sides = [[low for low, _ in bars], [high for _, high in bars]]
    style = {"capsize": 3, "elinewidth": 1.2, "markersize": 6, "zorder": 3} | dict(line.style)
    if horizontal:
        axes.errorbar(means, places, xerr=sides, label=line.label, **style)
    else:
        axes.errorbar(places, means, yerr=sides, label=line.label, **style)
    for place, value in line.points:
        if len(value.values) > 1:
            dots = [[place] * len(value.values), value.values]
            axes.plot(*(dots[::-1] if horizontal else dots), ".", color=style["color"], alpha=0.3)


def reach(value: Estimate) -> tuple[float, float]:
    """How far a bar reaches below and above the mean; 0 where that is not known.

    With several seeds it is their standard deviation, with one the 95 % interval over test items.
    """
    if value.std is not None:
        return value.std, value.std
    if value.low is None or value.high is None:
        return 0.0, 0.0
    return max(0.0, value.mean - value.low), max(0.0, value.high - value.mean)


def axis_range(
    values: Iterable[Estimate], levels: Iterable[float] = (), *, signed: bool = False
) -> tuple[float, float]:
    """The range of an axis that does not magnify noise.

    It covers the values with their bars and the levels, and at least `LEAST_BARS` widths of the
    widest bar; where no bar is known, `LEAST_SHARE` of the level. It begins at 0 where it would
    reach below, unless values are `signed`.
    """
    ends, widest = [*levels], 0.0
    for value in values:
        below, above = reach(value)
        ends += [value.mean - below, value.mean + above, *value.values]
        widest = max(widest, below + above)
    level = abs(min(ends) + max(ends)) / 2
    low, high = _around(ends, LEAST_BARS * widest if widest else LEAST_SHARE * level)
    return (low, high) if signed or low > 0 else (0.0, high - low)


def _around(ends: Sequence[float], least: float) -> tuple[float, float]:
    """The range of an axis with room around what it covers, `least` wide at least."""
    middle, span = (min(ends) + max(ends)) / 2, max(ends) - min(ends)
    half = max(span * (1 + 2 * ROOM), least, 1e-6) / 2
    return middle - half, middle + half


def paper_range(values: Sequence[float], ours: tuple[float, float]) -> tuple[float, float]:
    """The range of the paper's axis: a difference is no larger on it than on ours."""
    return _around(values, ours[1] - ours[0])


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


def _capitalized(text: str) -> str:
    """With a capital at its start; others, as in `mean IoU`, stay."""
    return text[:1].upper() + text[1:]


def _note(results: Results, rows: Sequence[str], *, of_differences: bool = False) -> str:
    """The line below the title: table, row, bars and budget."""
    budget = [results.budget.says] if results.budget is not None else []
    bars = how_sure(results, of_differences=of_differences)
    return facts(results, rows, f"bars: {bars}", *budget)


def _estimates(results: Results, row: str, columns: Iterable[str]) -> dict[str, Estimate]:
    found = ((name, estimate(results, row, name)) for name in columns)
    return {name: value for name, value in found if value is not None}


def draw_overview(results: Results, rows: Sequence[str]) -> Picture | None:
    """A family by generation: its networks, its ensembles, and controls of equal cost."""
    (row,) = rows
    networks = [column for column in results.columns if column.kind in NETWORKS]
    if not networks or not is_measured(results):
        return None
    values = _estimates(results, row, [column.name for column in results.columns])
    places = _places(networks)
    last, first = max(places.values()), networks[0]
    figure = Figure(figsize=(max(7.5, 2.5 + 0.75 * last), 4.8), layout="constrained")
    axes = figure.add_subplot()
    for line in _overview_lines(results, places, values):
        if line.points:
            draw_points(axes, line)
    if first.name in values and len(networks) > 1:
        axes.axhline(values[first.name].mean, label=f"Level of {first.heading}", **LEVEL)
    best, (low, high) = best_possible(results), axis_range(values.values())
    levels, told = [], ""
    if best is not None and best > low - (high - low):
        axes.axhline(best, color=GREEN, lw=1.2, label=f"Best possible: {best:.2f}")
        levels.append(best)
    elif best is not None:  # far off the axis
        told = f" · best possible: {best:.2f}"
    axes.set_ylim(axis_range(values.values(), levels))
    ticks = [textwrap.fill(column.heading, 9) for column in networks]
    axes.set_xticks([places[column.name] for column in networks], ticks)
    axes.set_xlim(-0.5, last + 0.5)
    axes.set_ylabel(axis_title(results))
    axes.legend()
    bars = f" · bars: {how_sure(results)}" if len(results.seeds) < 2 else ""
    titled(figure, results.title, subtitle(results) + told + bars)
    return figure, f"Test {results.measure.title} by generation. Bars: {how_sure(results)}."


def _places(networks: Sequence[Column]) -> dict[str, float]:
    """Where each network is on the horizontal axis, with a gap between methods."""
    places, at, before = {}, -1.0, networks[0].method
    for column in networks:
        at += 1 + GAP * (column.method != before)
        before = column.method
        places[column.name] = at
    return places


def _overview_lines(
    results: Results, places: Mapping[str, float], values: Mapping[str, Estimate]
) -> Iterator[Points]:
    """Generations and ensembles, a line for each method, whose first has the name; then controls.

    An ensemble is at its last member, a control at what it is compared with.
    """
    columns = [column for column in results.columns if column.name in values]
    networks = [column for column in columns if column.kind in NETWORKS]
    last = {(c.method, c.generation): places[c.name] for c in results.columns if c.name in places}
    ensembles = [c for c in columns if c.kind == "ensemble" and (c.method, c.generation) in last]
    at = {c.name: last[c.method, c.generation] for c in ensembles} | dict(places)
    name = "Born-again generations" if len(places) > 1 else "Trained on labels"
    for own, label, shift, color, marker in (
        (networks, name, 0.0, BLUE, "o"),
        (ensembles, "Their ensembles", SHIFT, ORANGE, "D"),
    ):
        for k, method in enumerate(dict.fromkeys(column.method for column in own)):
            points = [(at[c.name] + shift, values[c.name]) for c in own if c.method == method]
            style = {"color": color, "marker": marker, "lw": 2}
            yield Points("" if k else label, points, style)
    controls = [column for column in columns if column.kind == "control"]
    again = [values[control.name] for control in controls if control.size == 1]
    points = [(-2 * SHIFT * (1 + k), value) for k, value in enumerate(again)]
    yield Points("Labels again", points, {"color": GREY, "marker": "s", "ls": "none"})
    sizes = {control.size: values[control.name] for control in controls if control.size > 1}
    points = [(at[c.name] - SHIFT, sizes[c.size]) for c in ensembles if c.size in sizes]
    style = {"color": GREY, "marker": "D", "lw": 1.5, "ls": ":"}
    yield Points("Ensembles of label-trained networks", points, style)


def draw_table(results: Results, rows: Sequence[str]) -> Picture | None:
    """Every number of the paper's table as a dot: ours on the left, the paper's on the right."""
    columns = [column for column in results.columns if column.in_paper]
    ticks: list[str] = []
    places: dict[tuple[str, str], int] = {}
    for row in rows:
        if len(rows) > 1:  # the heading of a single row is in the subtitle
            ticks.append(results.row(row).heading)
        for column in columns:
            places[row, column.name] = len(ticks)
            ticks.append(column.heading)
    ours = {key: value for key in places if (value := estimate(results, *key)) is not None}
    if not ours:
        return None
    papers = {key: results.row(key[0]).paper.get(key[1]) for key in places}
    paper = {key: value for key, value in papers.items() if value is not None}
    figure = Figure(figsize=(8.5, 1.6 + 0.26 * len(ticks)), layout="constrained")
    panels = figure.subplots(1, 2 if paper else 1, squeeze=False, sharey=True)[0]
    for k, column in enumerate(columns):
        color = ORANGE if column.kind == "ensemble" else BLUE
        style = {"color": color if k else INK, "marker": "o", "ls": "none"}
        if not k:
            style["markerfacecolor"] = "white"
        points = [(places[key], value) for key, value in ours.items() if key[1] == column.name]
        draw_points(panels[0], Points("", points, style), horizontal=True)
        if paper:
            theirs = [key for key in paper if key[1] == column.name]
            xs, ys = [paper[key] for key in theirs], [places[key] for key in theirs]
            panels[1].plot(xs, ys, zorder=3, markersize=6, **style)
    panels[0].set_xlim(axis_range(ours.values()))
    if paper:
        panels[1].set_xlim(paper_range([*paper.values()], panels[0].get_xlim()))
    panels[0].set_yticks(range(len(ticks)), ticks)
    for place, text in enumerate(panels[0].get_yticklabels()):
        text.set_fontweight("normal" if place in places.values() else "bold")
    panels[0].set_ylim(len(ticks) - 0.4, -0.6)
    for axes, heading in zip(panels, ("Ours", "The paper"), strict=False):
        axes.set_title(heading, loc="left")
        axes.set_xlabel(axis_title(results))
        axes.grid(axis="y", visible=True)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    titled(figure, "The table at a glance", _note(results, rows))
    beside = " beside the paper's single runs, each on its own axis" if paper else ""
    return (
        figure,
        f"Test {results.measure.title} of every row and column of the paper's table: ours{beside}. "
        f"Bars: {how_sure(results)}.",
    )


def draw_generations(results: Results, rows: Sequence[str]) -> Picture | None:
    """The metric by generation, a row of the table below the other."""
    columns = asked_for(results, results.figures.generations)
    ticks = [textwrap.fill(results.column(name).heading, 10) for name in columns]
    title = f"{_capitalized(results.measure.title)} by generation"
    says = f"Test {results.measure.title} by generation; dashed: the first teacher."
    return _draw_lines(results, rows, {"": columns}, title, "", ticks, says)


def draw_ensembles(results: Results, rows: Sequence[str]) -> Picture | None:
    """The metric by the size of an ensemble, born-again and label-trained."""
    lines = {name: asked_for(results, line) for name, line in results.figures.ensembles.items()}
    sizes = [str(1 + k) for k in range(max(map(len, lines.values()), default=0))]
    title = f"{_capitalized(results.measure.title)} by size of the ensemble"
    kinds = " and ".join(name.lower() for name in lines)
    says = (
        f"Test {results.measure.title} by the number of networks whose predictions are averaged, "
        f"{kinds}."
    )
    return _draw_lines(results, rows, lines, title, "Networks in the ensemble", sizes, says)


def _draw_lines(
    results: Results,
    rows: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    title: str,
    axis: str,
    ticks: Sequence[str],
    says: str,
) -> Picture | None:
    """A row of the table below the other, ours on the left; None if no line has two points.

    Lines are columns by their label; the generations are one line without a label.
    """
    found = {row: drawn for row in rows if (drawn := _lines_of(results, row, lines))}
    if not found:
        return None
    papers = {row: [_paper_line(results, row, line) for line in lines.values()] for row in found}
    beside = any(map(any, papers.values()))
    size = (8.5 if beside else 6.5, 1.3 + 2.6 * len(found))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(found), 2 if beside else 1, squeeze=False)
    spans = [axis_range(v for line in drawn for _, v in line.points) for drawn in found.values()]
    half = max(high - low for low, high in spans) / 2  # a difference is as high in every row
    for (row, drawn), (ours, *right), (low, high) in zip(found.items(), panels, spans, strict=True):
        for line in drawn:
            draw_points(ours, line)
        label, ((place, first), *_) = drawn[0].label, drawn[0].points
        if not label and place == 0:
            ours.axhline(first.mean, **LEVEL)
        ours.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
        ours.set_ylabel(axis_title(results))
        ours.set_title("Ours" if len(found) == 1 else results.row(row).heading, loc="left")
        if label:
            ours.legend()
        for paper in right:
            paper.set_title("The paper", loc="left", color=GREY)
            for k, theirs in enumerate(papers[row]):
                if theirs:
                    style = {"color": GREY, "ls": ":" if k else "-", "marker": "o"}
                    paper.plot([*theirs], [*theirs.values()], **style)
            if known := [value for theirs in papers[row] for value in theirs.values()]:
                paper.set_ylim(paper_range(known, ours.get_ylim()))
        for axes in (ours, *right):
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.4, len(ticks) - 0.6)
            axes.set_xlabel(axis)
    titled(figure, title, _note(results, [*found]))
    right_of = " Right: the paper's single runs, on their own axis." if beside else ""
    return figure, f"{says} Bars: {how_sure(results)}.{right_of}"


def _lines_of(results: Results, row: str, lines: Mapping[str, Sequence[str]]) -> list[Points]:
    """The lines that have at least two points."""
    drawn = []
    for k, (label, columns) in enumerate(lines.items()):
        known = _estimates(results, row, columns)
        shift = SHIFT / 2 * (2 * k - len(lines) + 1)
        points = [(columns.index(column) + shift, value) for column, value in known.items()]
        color = (ORANGE, GREY)[k % 2] if label else BLUE
        style = {"color": color, "marker": "D" if label else "o", "lw": 2, "ls": ":" if k else "-"}
        drawn.append(Points(label, points, style))
    return [line for line in drawn if len(line.points) > 1]


def _paper_line(results: Results, row: str, columns: Sequence[str]) -> dict[float, float]:
    """The paper's values by place, where there are two at least."""
    paper = results.row(row).paper
    known = {float(k): v for k, c in enumerate(columns) if (v := paper.get(c)) is not None}
    return known if len(known) > 1 else {}


def draw_ablation(results: Results, rows: Sequence[str]) -> Picture | None:
    """What each way to train a student changes, compared with the teacher of its seed."""
    (row,) = rows
    teacher, *students = results.figures.ablation or ("",)
    found = {c: paired_difference(results, row, c, teacher) for c in asked_for(results, students)}
    ours = {column: value for column, value in found.items() if value is not None}
    if not ours:
        return None
    figure = Figure(figsize=(7.5, 1.6 + 0.34 * len(ours)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, **LEVEL)
    style: Any = {"color": BLUE, "marker": "o", "ls": "none"}
    draw_points(axes, Points("ours", [*enumerate(ours.values())], style), horizontal=True)
    papers, theirs = results.row(row).paper, {}
    if (level := papers.get(teacher)) is not None:
        known = ((k, papers.get(column)) for k, column in enumerate(ours))
        theirs = {k: value - level for k, value in known if value is not None}
    if theirs:
        dots = {**style, "color": GREY, "markerfacecolor": "white"}
        axes.plot([*theirs.values()], [*theirs], label="the paper", **dots)
        axes.legend()
    axes.set_xlim(axis_range(ours.values(), [0.0, *theirs.values()], signed=True))
    axes.set_yticks(range(len(ours)), [results.column(column).heading for column in ours])
    axes.set_ylim(len(ours) - 0.4, -0.6)
    heading, measure = results.column(teacher).heading, results.measure
    axes.set_xlabel(f"Test {measure.title} minus that of {heading} ({measure.leading.unit})")
    titled(figure, f"Difference to {heading}", _note(results, rows, of_differences=True))
    hollow = "; hollow: the paper's differences" if theirs else ""
    return (
        figure,
        f"Test {measure.title} of each student minus that of {heading} in its seed"
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
    **{
        f"results-{name}": TABLE_PICTURES[name]
        for name in ("ensembles", "ablation", "reliability", "agreement", "gradient")
    },
}
