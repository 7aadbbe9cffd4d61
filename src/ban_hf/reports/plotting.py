"""The picture of a run: error or perplexity by generation, with the ensembles and the controls.

Drawn from a results dictionary, one run's or an aggregated one (see `lineage.results`). The figure
is an object, without matplotlib's global state: it needs no display and disturbs no notebook.
"""

import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ban_hf.errors import BANError
from ban_hf.lineage.family_results import (
    Results,
    best_possible,
    entries_of,
    is_measured,
    mean_of,
    measure_of,
    subtitle,
)
from ban_hf.lineage.results import Measure
from ban_hf.reports.plot_layout import Axis, axis_of

Label = tuple[float | None, str, str]  # height, text, colour

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#00785A", "#767676", "#222222"
LEFT, WIDTH = 0.08, 0.66  # of the figure; what is right of the axes holds the labels
CONTROL_SHIFT = -0.18  # generations; keeps a control beside, not under, what it is compared with
ROOMY = 14  # generations side by side whose values have room in a picture of the usual width
TEXT_HEIGHT = 7  # of a written value, in points
STEEP = 0.4  # a slope on paper at which a line runs into the value that is centred on its marker
SLIGHT = 0.2  # and into one that is written beside it


@dataclass
class Series:
    """One line of the picture: what it is, how it looks, its generations and their values."""

    label: str
    colour: str
    marker: str
    places: list[float]
    values: list[Any]  # of the leading metric: errors or perplexities
    value_offset: tuple[int, int] = (0, 9)  # of the written values, in points
    value_offsets: list[tuple[int, int]] | None = None  # where they differ from place to place
    line: str = "-"
    width: float = 2  # of the line

    @property
    def means(self) -> list[float]:
        return [mean_of(value) or 0.0 for value in self.values]

    @property
    def deviations(self) -> list[float]:
        return [(v["std"] or 0.0) if isinstance(v, Mapping) else 0.0 for v in self.values]


def plot_generations(results: Results, path: str | os.PathLike[str]) -> None:
    """Draw the leading metric by generation, with the ensembles and the controls, as a PNG file.

    Students of one teacher by several objectives are drawn side by side, see `reports.plot_layout`.

    The dashed line is the level of the first teacher; the green one, where the entropy of the text
    is known, the perplexity that no model can fall below. Controls are grey, each beside what it is
    to be compared with. Of an aggregated result the mean is drawn, the standard deviation as a bar,
    single seeds as faint dots.

    Raises:
        ValueError: if no generation has a value of the leading metric: there is no line to draw.
    """
    if not is_measured(results):
        raise BANError(
            f"results has no test {measure_of(results).title} of any generation, so that there is "
            "nothing to draw: give train_generations a test_dataset."
        )
    axis = axis_of(results["generations"])
    width = 9.6 * max(1.0, (axis.limits[1] - axis.limits[0]) / ROOMY)
    figure = Figure(figsize=(width, 5.4), dpi=150, facecolor="white")
    axes = figure.add_axes((LEFT, 0.135, WIDTH, 0.695))
    lines = [line for line in (*_ours(results, axis), *_control_ensembles(results)) if line.places]
    for line in lines:
        draw_series(axes, line)
    labels = [(mean_of(line.values[-1]), line.label, line.colour) for line in lines if line.label]
    labels += [*_draw_first_teacher(axes, results), *_draw_control_networks(axes, results)]
    labels += _draw_best_possible(axes, results)
    _style(axes, axis, measure_of(results))
    for line in lines:
        write_values(axes, line)
    write_labels(axes, labels)
    figure.text(LEFT, 0.935, results["title"], fontsize=15, fontweight="bold", color=INK)
    note = subtitle(results)
    if (best := best_possible(results)) is not None and not _is_in_reach(best, results):
        note += f" · best possible: {best:.2f}"
    figure.text(LEFT, 0.88, note, fontsize=10, color=GREY)
    save_png(figure, path)


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Save a picture, whole or not at all."""
    partial = Path(f"{os.fspath(path)}.partial")  # a killed run leaves the old picture whole
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _ours(results: Results, axis: Axis) -> list[Series]:
    """The generations and the ensembles; of several methods those of each, the last ones named."""
    *others, last = axis.origins
    return [
        line
        for method in (*others, last)
        for line in _of_method(results, axis, method, is_named=method == last)
    ]


def _of_method(
    results: Results, axis: Axis, method: str | None, *, is_named: bool
) -> tuple[Series, Series]:
    generations, ensembles = (
        [entry for entry in results.get(part) or [] if entry.get("method") == method]
        for part in ("generations", "ensembles")
    )
    return (
        _series(
            _name_of(generations) if is_named else "",
            (BLUE, "o"),
            [(axis.place(entry), _value(entry, results)) for entry in generations],
        ),
        _series(
            "Their ensembles" if is_named else "",
            (ORANGE, "D"),
            [(axis.place(entry), _value(entry, results)) for entry in ensembles],
            value_offset=(0, -16),
        ),
    )


def _name_of(generations: Sequence[Results]) -> str:
    if len(generations) > 1:
        return "Born-again generations"
    return "Trained on labels" if generations[0]["generation"] == 0 else "Born-again"


def _control_ensembles(results: Results) -> list[Series]:
    """Ensembles of label-trained networks, each at the place of our ensemble of its size."""
    place = {len(e["members"]): max(e["members"]) for e in results.get("ensembles") or []}
    points = [
        (place.get(entry["size"], entry["size"]) + CONTROL_SHIFT, _value(entry, results))
        for entry in results.get("controls") or []
        if entry["kind"] == "ensemble"
    ]
    look = (GREY, "D")
    return [_series("Label-trained ensemble", look, points, value_offset=(-6, -14), line=":")]


def _value(entry: Results, results: Results) -> Any:
    """An entry's leading metric, one run's or aggregated."""
    return entry["test"].get(measure_of(results).leading.name)


def _series(
    label: str, look: tuple[str, str], points: Sequence[tuple[float, Any]], **style: Any
) -> Series:
    known = [(at, value) for at, value in points if mean_of(value) is not None]
    return Series(label, *look, [at for at, _ in known], [value for _, value in known], **style)


def draw_series(axes: Axes, series: Series) -> None:
    """Draw a line with its standard deviations as bars and its single seeds as faint dots."""
    axes.errorbar(
        series.places,
        series.means,
        series.deviations if any(series.deviations) else None,
        color=series.colour,
        marker=series.marker,
        markersize=7,
        markerfacecolor="white" if series.colour == GREY else series.colour,
        linestyle=series.line,
        linewidth=series.width,
        elinewidth=1.2,
        capsize=4,
        zorder=3,
    )
    for place, value in zip(series.places, series.values, strict=True):
        seeds = value["values"] if isinstance(value, Mapping) else []
        axes.plot([place] * len(seeds), seeds, "o", color=series.colour, alpha=0.3, ms=5, mew=0)


def write_values(axes: Axes, series: Series) -> None:
    """Write each value beside its marker, once the axes are as they will be."""
    offsets = _offsets(axes, series)
    values = zip(series.places, series.means, series.deviations, offsets, strict=True)
    for place, mean, deviation, (right, up) in values:
        edge = mean if right else mean + math.copysign(deviation, up)  # clear of the bar
        align = {-1: "right", 0: "center", 1: "left"}[(right > 0) - (right < 0)]
        write(axes, f"{mean:.2f}", (place, edge), (right, up), series.colour, ha=align)


def _offsets(axes: Axes, series: Series) -> list[tuple[int, int]]:
    """Where each value is written, in points from its marker: beside or opposite a steep line."""
    axes.autoscale_view()
    points = axes.transData.transform(list(zip(series.places, series.means, strict=True)))

    def slope(here: int, there: int, up: int) -> float:
        if not 0 <= there < len(points):
            return -math.inf
        (x, y), (x_there, y_there) = points[here], points[there]
        return float((y_there - y) * math.copysign(1, up) / abs(x_there - x))

    offsets = []
    for k, (right, up) in enumerate(series.value_offsets or [series.value_offset] * len(points)):
        left, out = slope(k, k - 1, up), slope(k, k + 1, up)
        if max(left, out) > STEEP and min(left, out) > SLIGHT:
            offsets.append((0, -up - TEXT_HEIGHT))
        else:
            offsets.append((right or 6 * ((left > STEEP) - (out > STEEP)), up))
    return offsets


def _draw_first_teacher(axes: Axes, results: Results) -> list[Label]:
    first, *students = results["generations"]
    level = mean_of(_value(first, results))
    if level is None or not students:
        return []
    axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    return [(level, "First teacher", INK)]


def _draw_control_networks(axes: Axes, results: Results) -> list[Label]:
    """Every further label-trained network, at the first generation, and their mean level."""
    networks = [c for c in results.get("controls") or [] if c["kind"] == "network"]
    known = [v for v in (_value(c, results) for c in networks) if mean_of(v) is not None]
    single = [v["values"] if isinstance(v, Mapping) else [v] for v in known]
    values = list(itertools.chain.from_iterable(single))
    if not values:
        return []
    level = statistics.fmean(values)
    places = [results["generations"][0]["generation"] + CONTROL_SHIFT] * len(values)
    axes.plot(places, values, "o", color=GREY, markerfacecolor="white", markersize=6)
    axes.axhline(level, color=GREY, linewidth=1, linestyle=":", zorder=1)
    return [(level, "Label-trained again, mean", GREY)]


def _draw_best_possible(axes: Axes, results: Results) -> list[Label]:
    best = best_possible(results)
    if best is None or not _is_in_reach(best, results):
        return []
    axes.axhline(best, color=GREEN, linewidth=1.2, zorder=1)
    return [(best, f"Best possible: {best:.2f}", GREEN)]


def _is_in_reach(best: float, results: Results) -> bool:
    """Whether the values still fill a third of the picture where the best possible is in it."""
    known = [v for e in entries_of(results) if (v := mean_of(_value(e, results))) is not None]
    spread = max(known, default=best) - min(known, default=best)
    return spread == 0 or min(known) - best <= 2 * spread


def _style(axes: Axes, axis: Axis, measure: Measure) -> None:
    axes.set_xlim(*axis.limits)
    axes.set_xticks(list(axis.ticks), list(axis.ticks.values()))
    axes.set_xlabel(axis.title, color=INK, fontsize=11)
    unit = f" ({measure.unit})" if measure.unit else ""
    axes.set_ylabel(f"Test {measure.title}{unit}", color=INK, fontsize=11)
    axes.margins(y=0.14)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    style_axes(axes)


def style_axes(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Give axes the look of all our pictures: faint grid lines, no frame, no ticks."""
    axes.grid(axis=grid, color="#E8E8E8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(colors=INK, length=0, labelsize=10.5)


def write_labels(axes: Axes, labels: Sequence[Label], share: float = 0.055) -> None:
    """Write what each line is at its height on the right, a share of the axes' height apart."""
    low, high = axes.get_ylim()
    gap, right = share * (high - low), axes.get_xlim()[1]
    taken = -math.inf
    for height, text, colour in sorted(label for label in labels if label[0] is not None):
        taken = max(height or 0.0, taken + gap)
        write(axes, text, (right, taken), (8, 0), colour, ha="left", va="center", weight="bold")


def write(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[int, int],
    colour: str,
    **style: Any,
) -> None:
    """Write a text beside a place, the offset in points."""
    axes.annotate(
        text,
        at,
        xytext=offset,
        textcoords="offset points",
        color=colour,
        fontsize=10,
        path_effects=[withStroke(linewidth=3, foreground="white")],  # legible on a line
        annotation_clip=False,
        **{"ha": "center", **style},
    )
