"""Pictures of dots on horizontal lines: the whole table, and what each kind of student gains."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ban_hf.lineage.family_results import spread
from ban_hf.reports.figure_style import DASHES, PAPER, Page, Picture, View, head_panel
from ban_hf.reports.plotting import BLUE, GREY, INK, ORANGE, style_axes, write

Key = tuple[str, str]  # row and column
Dot = tuple[float, float]  # mean and standard deviation

PAIR = 2  # columns that share a line
LINE, PAIR_LINE, ABLATION_LINE = 0.245, 0.36, 0.52  # inches from a line to the next
BETWEEN_ROWS = 1.4  # lines


def draw_table(view: View, rows: Sequence[str]) -> Picture | None:
    """Every number of the paper's table as a dot: ours on the left, the paper's on the right."""
    columns = [name for name, column in view.columns.items() if column["in_paper"]]
    keys = [(row, column) for row in rows for column in columns]
    ours = {key: dot for key in keys if (dot := _dot(view.value(*key)))}
    paper = {key: (value, 0.0) for key in keys if (value := view.paper(*key)) is not None}
    if not ours:
        return None
    places, ticks, end = _places(view, rows, columns)
    height = end * (PAIR_LINE if len(columns) <= PAIR else LINE)
    note = view.note(rows, *_key(view, columns))
    page = Page("The table at a glance", note, height + 1.2)
    for dots, left, heading in ((ours, 2.1, "Ours"), (paper, 5.95, PAPER)):
        if not dots:
            continue
        axes = page.panel(left, 0.35, 3.3, height)
        _draw_dots(axes, view, dots, places, columns)
        _style(axes, ticks, end, is_first=heading != PAPER)
        for at, text in zip(ticks, axes.get_yticklabels(), strict=True):
            text.set_fontweight("normal" if at in places.values() else "bold")  # names of rows
        axes.set_xlabel(view.axis_title, color=INK, fontsize=10)
        axes.margins(x=0.3)
        head_panel(axes, heading, is_ours=heading != PAPER)
    beside = " beside the paper's, each on its own axis" if paper else ""
    return (
        page.figure,
        f"Test {view.measure.title} of every row and column of the paper's table: ours "
        f"({view.seeds(rows)}){beside}.",
    )


def draw_ablation(view: View, rows: Sequence[str]) -> Picture | None:
    """What each way to train a student gains on the teacher, of one row of the table."""
    (row,) = rows
    teacher, *students = view.line("ablation") or [""]
    ours = {column: dot for column in students if (dot := _gain(view, row, column, teacher))}
    if not ours:
        return None
    level = view.paper(row, teacher)
    paper = {
        column: value - level
        for column in ours
        if level is not None and (value := view.paper(row, column)) is not None
    }
    height = ABLATION_LINE * len(ours)
    title = f"Difference to the teacher's {view.measure.title}"
    page = Page(title, view.note(rows), height + 1.25)
    axes = page.panel(1.6, 0.35, 4.9, height)
    axes.axvline(0, color=INK, linewidth=1, linestyle=DASHES, zorder=1)
    for at, (column, (mean, deviation)) in enumerate(ours.items()):
        _draw_dot(axes, (mean, deviation), at, BLUE)
        text = _signed(mean) + (f" ± {deviation:.2f}" if deviation else "")
        _write_right(axes, text, at, 12, BLUE)
        if column in paper:
            axes.plot(paper[column], at + 0.24, "D", color=GREY, markerfacecolor="white", ms=5.5)
            _write_right(axes, _signed(paper[column]), at, 124, GREY)
    _style(axes, {float(k): view.heading(c) for k, c in enumerate(ours)}, len(ours))
    axes.margins(x=0.1)
    _write_right(axes, "● Ours", -0.72, 12, BLUE, weight="bold")
    if paper:
        _write_right(axes, f"◇ {PAPER}", -0.72, 124, GREY, weight="bold")
    unit = " (points)" if view.measure.unit == "%" else ""
    axes.set_xlabel(f"Student minus teacher{unit}: less is better", color=INK, fontsize=10)
    beside = "; hollow: the paper's differences" if paper else ""
    return (
        page.figure,
        f"Test {view.measure.title} of each student minus that of the teacher of its seed, "
        f"{view.seeds(rows)}{beside}.",
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _gain(view: View, row: str, column: str, teacher: str) -> Dot | None:
    """A student minus the teacher of its own seed, so that what seeds share falls away."""
    levels = view.seed_values(row, teacher)
    values = view.seed_values(row, column)
    return _dot(spread(value - levels[seed] for seed, value in values.items() if seed in levels))


def _dot(value: Mapping[str, Any] | None) -> Dot | None:
    return None if value is None else (value["mean"], value["std"] or 0.0)


def _places(
    view: View, rows: Sequence[str], columns: Sequence[str]
) -> tuple[dict[Key, float], dict[float, str], float]:
    """On which line each dot is, what is written beside the lines, and how many lines there are.

    Two columns share a line; of more each has its own, below the name of the row.
    """
    if len(columns) <= PAIR:
        places = {(row, column): float(k) for k, row in enumerate(rows) for column in columns}
        return places, {float(k): view.row_heading(row) for k, row in enumerate(rows)}, len(rows)
    places, ticks, at = {}, {}, 0.0
    for row in rows:
        if len(rows) > 1:  # of a single one the note has the name
            ticks[at] = view.row_heading(row)
            at += 1
        for column in columns:
            places[row, column], ticks[at] = at, view.heading(column)
            at += 1
        at += BETWEEN_ROWS - 1
    return places, ticks, at - (BETWEEN_ROWS - 1)


def _draw_dots(
    axes: Axes,
    view: View,
    dots: Mapping[Key, Dot],
    places: Mapping[Key, float],
    columns: Sequence[str],
) -> None:
    """Dots with their values; a pair is joined, else the first column's level runs down its row."""
    is_pair = len(columns) <= PAIR
    for row in dict.fromkeys(row for row, _ in dots):
        means = {column: dots[row, column][0] for column in columns if (row, column) in dots}
        ends = [places[row, columns[0]], places[row, columns[-1]]]
        leftmost = min(means, key=lambda c: means[c]) if len(means) > 1 else None
        if is_pair:
            axes.plot([min(means.values()), max(means.values())], ends, color="#CFCFCF", lw=3)
        elif columns[0] in means:
            axes.plot([means[columns[0]]] * 2, ends, color=INK, lw=0.8, ls=DASHES, zorder=1)
        for column, mean in means.items():
            at, deviation = places[row, column], dots[row, column][1]
            colour = _colour(view, columns, column)
            _draw_dot(axes, (mean, deviation), at, colour, is_hollow=column == columns[0])
            # outside of a pair; clear of the level that runs down
            is_left = column == leftmost if is_pair else mean < means.get(columns[0], mean)
            side = -1 if is_left else 1
            align = "right" if side < 0 else "left"
            edge, style = (mean + side * deviation, at), dict(ha=align, va="center")
            write(axes, f"{mean:.2f}", edge, (7 * side, 0), colour, **style)


def _draw_dot(axes: Axes, dot: Dot, at: float, colour: str, *, is_hollow: bool = False) -> None:
    mean, deviation = dot
    axes.errorbar(
        [mean],
        [at],
        xerr=[deviation] if deviation else None,
        color=colour,
        marker="o",
        markersize=6.5,
        markerfacecolor="white" if is_hollow else colour,
        elinewidth=1.2,
        capsize=3,
        zorder=3,
    )


def _colour(view: View, columns: Sequence[str], column: str) -> str:
    if column == columns[0]:
        return INK
    return ORANGE if view.columns[column]["ensemble"] else BLUE


def _key(view: View, columns: Sequence[str]) -> list[str]:
    """What the dots of a pair are, in words: the lines are named after their rows."""
    if len(columns) > PAIR:
        return []
    return [f"{sign} {view.heading(column)}" for sign, column in zip("○●", columns, strict=False)]


def _style(axes: Axes, ticks: Mapping[float, str], end: float, *, is_first: bool = True) -> None:
    """Lines from the top to the bottom, named on the left of the first panel."""
    axes.set_ylim(end - 0.4, -0.6)
    axes.set_yticks(list(ticks), list(ticks.values()) if is_first else [""] * len(ticks))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    style_axes(axes, "x")
    axes.tick_params(labelsize=9.5)


def _write_right(axes: Axes, text: str, at: float, right: int, colour: str, **style: Any) -> None:
    """Write on a line, points to the right of the axes."""
    axes.annotate(
        text,
        (1, at),
        xycoords=axes.get_yaxis_transform(),
        xytext=(right, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        color=colour,
        annotation_clip=False,
        **style,
    )
