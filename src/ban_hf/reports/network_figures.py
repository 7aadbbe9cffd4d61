"""Pictures of what the networks of a row do: their calibration, agreement and gradient."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ban_hf.lineage.results import Array, Entry, Results, unpack_classes
from ban_hf.reports.statistics import spread
from ban_hf.reports.style import BLUE, COLORS, GREY, INK, Picture, titled

Bins = list[tuple[float, float, float]]  # items, mean confidence, accuracy
Curve = dict[float, float]  # a logged value by epoch

NORMAL = 1.96  # standard deviations in half a 95 % interval
FEW = 0.005  # of all items; the accuracy of fewer in a bin says little
LEAST_SHADES = 10  # percent points that the colors of the agreement cover at least
SHADES = LinearSegmentedColormap.from_list("shades", ["#EEF5FA", BLUE])
TERMS = {  # of a log, see `ban_hf.training`; what they are, and their formulas
    "ground_truth_term": ("At the label", r"$q_* - p_*$"),
    "dark_knowledge_term": ("Off the label: dark knowledge", r"$\sum_{i \neq *}\ |q_i - p_i|$"),
}


def draw_reliability(results: Results, rows: Sequence[str]) -> Picture | None:
    """Accuracy by confidence of each generation of one row."""
    (row,) = rows
    columns = _sequence(results)
    pooled = {c: pool_bins(results.cell(row, c).values()) for c in columns}
    pooled = {column: bins for column, bins in pooled.items() if bins}
    if not pooled:
        return None
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for (column, bins), color in zip(pooled.items(), itertools.cycle((INK, *COLORS))):
        networks = sum(1 for e in results.cell(row, column).values() if e.reliability)
        total = sum(n for n, _, _ in bins)
        many = [one for one in bins if one[0] >= FEW * total]
        few = [(100 * x, 100 * y) for n, x, y in bins if n < FEW * total]
        reach = [wilson(accuracy, n / networks) for n, _, accuracy in many]
        axes.errorbar(
            [100 * x for _, x, _ in many],
            [100 * y for _, _, y in many],
            yerr=[[100 * low for low, _ in reach], [100 * high for _, high in reach]],
            color=color,
            lw=1.8,
            marker="o",
            ms=4,
            capsize=2,
            elinewidth=1,
            label=results.column(column).heading + _calibration(results, row, column),
        )
        if few:
            axes.plot(*zip(*few, strict=True), "o", color=color, alpha=0.3, ms=4, mew=0)
    limit = 10 * math.ceil(10 * max(max(x, y) for bins in pooled.values() for _, x, y in bins))
    axes.plot([0, limit], [0, limit], color=GREY, lw=1, ls="--", zorder=1)
    axes.set(xlim=(0, limit), ylim=(0, limit))
    axes.set_xlabel("Confidence in the predicted class (%)")
    axes.set_ylabel("Accuracy (%)")
    axes.legend()
    titled(figure, "Confidence and accuracy", _note(results, row))
    return (
        figure,
        "Accuracy of the test items by the confidence of their prediction, all seeds together; on "
        "the dashed line the two are equal, below it a network is overconfident. ECE: their mean "
        "distance. Bars: 95 % interval over the items of a bin. Faint: bins of fewer than "
        f"{100 * FEW:g} % of the items.",
    )


def _sequence(results: Results) -> list[str]:
    """The columns of the picture of generations, those alone that were asked for."""
    known = {column.name for column in results.columns}
    return [name for name in results.figures.generations if name in known]


def _note(results: Results, row: str) -> str:
    """Table, row and seeds of a picture."""
    heading = [] if results.is_family else [results.row(row).heading]
    n = len(results.seeds)
    seeds = f"{n} seeds" if n > 1 else "one seed"
    return " · ".join([results.title, *heading, seeds])


def wilson(share: float, n: float) -> tuple[float, float]:
    """How far the 95 % interval of a share of n items reaches below and above it (Wilson 1927)."""
    z2 = NORMAL**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, share - middle + half), max(0.0, middle + half - share)


def pool_bins(entries: Iterable[Entry]) -> Bins:
    """Bins of several networks as those of one that saw all their items; empty bins left out.

    Their confidence and accuracy are means over items, so that networks count by their items.
    """
    networks = [entry.reliability for entry in entries if entry.reliability]
    pooled = []
    for alike in zip(*networks, strict=True):
        known = [(n, x, y) for n, x, y in alike if n and x is not None and y is not None]
        if n := sum(one[0] for one in known):
            x, y = (sum(one[0] * one[k] for one in known) / n for k in (1, 2))
            pooled.append((float(n), x, y))
    return pooled


def _calibration(results: Results, row: str, column: str) -> str:
    ece = spread(entry.value("ece") for entry in results.cell(row, column).values())
    if ece is None:
        return ""
    return f": ECE {ece.mean:.1f}" + (f" ± {ece.std:.1f} %" if ece.std is not None else " %")


def draw_agreement(results: Results, rows: Sequence[str]) -> Picture | None:
    """How many test items two generations of one row put into the same class."""
    (row,) = rows
    columns = [c for c in _sequence(results) if _predictions(results, row, c)]
    mean, reach = agreement(results, row, columns)
    shown = np.where(np.eye(len(columns), dtype=bool), np.nan, mean)  # one agrees with itself
    known = shown[~np.isnan(shown)]
    if not known.size:
        return None
    figure = Figure(figsize=(1.6 + 0.95 * len(columns), 1.2 + 0.9 * len(columns)))
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    middle, half = (known.min() + known.max()) / 2, (known.max() - known.min()) / 2
    half = max(half, LEAST_SHADES / 2)
    axes.imshow(shown, cmap=SHADES, vmin=middle - half, vmax=middle + half)
    for i, k in itertools.product(range(len(columns)), repeat=2):
        if not np.isnan(shown[i, k]):
            color = "white" if shown[i, k] > middle else INK
            text = f"{shown[i, k]:.1f}\n± {reach[i, k]:.1f}"
            axes.text(k, i, text, ha="center", va="center", size=10, color=color)
    headings = [results.column(column).heading for column in columns]
    axes.set_xticks(range(len(columns)), headings)
    axes.set_yticks(range(len(columns)), headings)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    says = "Percent of the test items that two networks of a seed put into the same class, " + (
        "mean ± standard deviation over seeds"
        if len(results.seeds) > 1
        else "± half a 95 % interval"
    )
    reference = agreement_of_seeds(results, row, columns[0])
    if reference is not None:
        other = f"{headings[0]} networks of different seeds agree on {reference:.1f} %"
        says += f"; for comparison: {other}"
    titled(figure, "Agreement", _note(results, row))
    return figure, says + "."


def agreement(results: Results, row: str, columns: Sequence[str]) -> tuple[Array, Array]:
    """Agreement of the columns of a row within a seed, percent, mean over seeds.

    Returns:
        `(N, N)` of N columns, and how sure it is: the standard deviation over seeds, of one seed
        half a 95 % interval over items. NaN where no seed has both.
    """
    predicted = [_predictions(results, row, column) for column in columns]
    mean, reach = np.full((2, len(columns), len(columns)), np.nan)
    for (i, a), (k, b) in itertools.product(enumerate(predicted), repeat=2):
        shares = [_share_alike(a[seed], b[seed]) for seed in a.keys() & b.keys()]
        if (found := spread(shares)) is not None:
            n = len(next(iter(a.values())))
            p = found.mean / 100
            items = 100 * NORMAL * math.sqrt(p * (1 - p) / n)
            mean[i, k], reach[i, k] = found.mean, items if found.std is None else found.std
    return mean, reach


def agreement_of_seeds(results: Results, row: str, column: str) -> float | None:
    """Agreement of the networks of a column, each with that of every other seed; mean, percent."""
    pairs = list(itertools.combinations(_predictions(results, row, column).values(), 2))
    return statistics.fmean(_share_alike(a, b) for a, b in pairs) if pairs else None


def _share_alike(a: Array, b: Array) -> float:
    return 100 * float(np.mean(a == b))


def _predictions(results: Results, row: str, column: str) -> dict[int, Array]:
    """The predicted classes of a cell by seed, `(N,)` each."""
    found = {}
    for seed, entry in results.cell(row, column).items():
        if entry.outcomes is not None and entry.outcomes.predicted is not None:
            found[seed] = unpack_classes(entry.outcomes.predicted)
    return found


def draw_gradient(results: Results, rows: Sequence[str]) -> Picture | None:
    """The two parts of a student's gradient over its training, of the students of one row."""
    (row,) = rows
    columns = _sequence(results) or [c.name for c in results.columns if c.in_paper]
    students = [c for c in columns if all(log_curves(results, row, c, term) for term in TERMS)]
    if not students:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (term, (heading, formula)) in zip(panels, TERMS.items(), strict=True):
        axes.set_title(heading, loc="left")
        for column, color in zip(students, itertools.cycle(COLORS)):
            curves = log_curves(results, row, column, term)
            mean = mean_curve(curves)
            each = [spread(curve[at] for curve in curves.values()) for at in mean]
            reach = [(one.std or 0.0) if one is not None else 0.0 for one in each]
            low, high = (
                [m + sign * d for m, d in zip(mean.values(), reach, strict=True)]
                for sign in (-1, 1)
            )
            axes.fill_between([*mean], low, high, color=color, alpha=0.18, lw=0)
            heading_of = results.column(column).heading
            axes.plot([*mean], [*mean.values()], color=color, lw=1.8, label=heading_of)
        if term == "ground_truth_term":  # signed
            axes.axhline(0, color=INK, lw=1, ls="--", zorder=1)
        axes.set_xlabel("Epoch")
        axes.set_ylabel(f"{formula}, mean over {results.measure.items}")
    panels[1].legend()
    note = f"{_note(results, row)} · q: student, p: its teacher, *: the label"
    titled(figure, "The gradient of a student, taken apart", note)
    bands = "shaded: standard deviation over seeds" if len(results.seeds) > 1 else "one seed"
    return (
        figure,
        f"The gradient of the loss by the logits over training ({bands}): the part of the label, "
        "negative where the student is less sure of it than its teacher, and the dark knowledge, "
        "how far the two are apart on all other classes.",
    )


def log_curves(results: Results, row: str, column: str, term: str) -> dict[int, Curve]:
    """A logged value by epoch, of each seed that logged it."""
    curves = {}
    for seed, entry in results.cell(row, column).items():
        pairs = zip(entry.log.get("epoch", ()), entry.log.get(term, ()), strict=False)
        curves[seed] = {at: value for at, value in pairs if at is not None and value is not None}
    return {seed: curve for seed, curve in curves.items() if curve}


def mean_curve(curves: Mapping[int, Curve]) -> Curve:
    """Mean over seeds, at the epochs that all of them logged."""
    common = set.intersection(*(set(curve) for curve in curves.values()))
    return {at: statistics.fmean(curve[at] for curve in curves.values()) for at in sorted(common)}
