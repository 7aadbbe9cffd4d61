"""Pictures of what the networks of a row do: their calibration, agreement and gradient."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ban_hf.lineage.results import Array, Entry, Results, unpack_classes
from ban_hf.reports.statistics import spread
from ban_hf.reports.style import BLUE, COLORS, GREY, INK, LEVEL, Picture, asked_for, facts, titled

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
    networks = {c: [*results.cell(row, c).values()] for c in _generations(results)}
    pooled = {c: bins for c, own in networks.items() if (bins := pool_bins(own)).size}
    if not pooled:
        return None
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for (column, bins), color in zip(pooled.items(), itertools.cycle((INK, *COLORS))):
        n, confidence, accuracy = bins.T  # (bins,) each
        many = n >= FEW * n.sum()  # (bins,)
        count = sum(1 for entry in networks[column] if entry.reliability)
        axes.errorbar(
            100 * confidence[many],
            100 * accuracy[many],
            yerr=100 * wilson(accuracy[many], n[many] / count),
            color=color,
            lw=1.8,
            marker="o",
            ms=4,
            capsize=2,
            elinewidth=1,
            label=results.column(column).heading + _calibration(networks[column]),
        )
        if not many.all():
            few = 100 * confidence[~many], 100 * accuracy[~many]
            axes.plot(*few, "o", color=color, alpha=0.3, ms=4, mew=0)
    limit = 10 * math.ceil(10 * max(bins[:, 1:].max() for bins in pooled.values()))
    axes.plot([0, limit], [0, limit], **LEVEL | {"color": GREY})
    axes.set(xlim=(0, limit), ylim=(0, limit))
    axes.set_xlabel("Confidence in the predicted class (%)")
    axes.set_ylabel("Accuracy (%)")
    axes.legend()
    titled(figure, "Confidence and accuracy", facts(results, rows, _seeds(results)))
    return (
        figure,
        "Accuracy of the test items by the confidence of their prediction, all seeds together; on "
        "the dashed line the two are equal, below it a network is overconfident. ECE: their mean "
        "distance. Bars: 95 % interval over the items of a bin. Faint: bins of fewer than "
        f"{100 * FEW:g} % of the items.",
    )


def _generations(results: Results) -> list[str]:
    return asked_for(results, results.figures.generations)


def _seeds(results: Results) -> str:
    return f"{len(results.seeds)} seeds" if len(results.seeds) > 1 else "one seed"


def wilson(share: Array, n: Array) -> Array:
    """How far 95 % intervals of shares `(N,)` of n items reach below and above, `(2, N)`.

    Source: Wilson 1927.
    """
    z2 = NORMAL**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return np.maximum(0, [share - middle + half, middle + half - share])


def pool_bins(entries: Iterable[Entry]) -> Array:
    """Bins of several networks as those of one that saw all their items; empty bins left out.

    Items, mean confidence and accuracy of each, `(bins, 3)`; networks count by their items.
    """
    networks = [entry.reliability for entry in entries if entry.reliability]
    if not networks:
        return np.empty((0, 3))
    each = np.nan_to_num(np.array(networks, dtype=float))  # (networks, bins, 3), an empty bin is 0
    n = each[:, :, :1].sum(axis=0)  # (bins, 1)
    sums = (each[:, :, :1] * each[:, :, 1:]).sum(axis=0)  # (bins, 2)
    filled = n[:, 0] > 0  # (bins,)
    return np.hstack([n, sums / np.maximum(n, 1)])[filled]


def _calibration(entries: Iterable[Entry]) -> str:
    """The ECE, as it stands in the legend."""
    ece = spread(entry.value("ece") for entry in entries)
    if ece is None:
        return ""
    return f": ECE {ece.mean:.1f}" + (f" ± {ece.std:.1f} %" if ece.std is not None else " %")


def draw_agreement(results: Results, rows: Sequence[str]) -> Picture | None:
    """How many test items two generations of one row put into the same class."""
    (row,) = rows
    columns = [c for c in _generations(results) if _predictions(results, row, c)]
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
    titled(figure, "Agreement", facts(results, rows, _seeds(results)))
    return figure, says + "."


def agreement(results: Results, row: str, columns: Sequence[str]) -> tuple[Array, Array]:
    """Agreement of N columns of a row within a seed, percent, mean over seeds, `(N, N)`.

    And how sure it is, `(N, N)`: the standard deviation over seeds, of one seed half a 95 %
    interval over items. NaN where no seed has both.
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
    """Of `(N,)` and `(N,)`, percent."""
    return 100 * float(np.mean(a == b))


def _predictions(results: Results, row: str, column: str) -> dict[int, Array]:
    """The predicted classes of a cell by seed, `(N,)` each."""
    return {
        seed: unpack_classes(entry.outcomes.predicted)
        for seed, entry in results.cell(row, column).items()
        if entry.outcomes is not None and entry.outcomes.predicted is not None
    }


def draw_gradient(results: Results, rows: Sequence[str]) -> Picture | None:
    """The two parts of a student's gradient over its training, of the students of one row."""
    (row,) = rows
    columns = _generations(results) or [c.name for c in results.columns if c.in_paper]
    curves = {c: {term: log_curves(results, row, c, term) for term in TERMS} for c in columns}
    students = {column: terms for column, terms in curves.items() if all(terms.values())}
    if not students:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (term, (heading, formula)) in zip(panels, TERMS.items(), strict=True):
        axes.set_title(heading, loc="left")
        for (column, terms), color in zip(students.items(), itertools.cycle(COLORS)):
            epochs, values = [*terms[term]], np.array([*terms[term].values()])  # (epochs, S)
            mean, several = values.mean(axis=1), values.shape[1] > 1
            std = values.std(axis=1, ddof=1) if several else np.zeros_like(mean)  # (epochs,)
            axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.18, lw=0)
            label = results.column(column).heading
            axes.plot(epochs, mean, color=color, lw=1.8, label=label)
        if term == "ground_truth_term":  # signed
            axes.axhline(0, **LEVEL)
        axes.set_xlabel("Epoch")
        axes.set_ylabel(f"{formula}, mean over {results.measure.items}")
    panels[1].legend()
    note = facts(results, rows, _seeds(results), "q: student, p: its teacher, *: the label")
    titled(figure, "The gradient of a student, taken apart", note)
    bands = "shaded: standard deviation over seeds" if len(results.seeds) > 1 else "one seed"
    return (
        figure,
        f"The gradient of the loss by the logits over training ({bands}): the part of the label, "
        "negative where the student is less sure of it than its teacher, and the dark knowledge, "
        "how far the two are apart on all other classes.",
    )


def log_curves(results: Results, row: str, column: str, term: str) -> dict[float, list[float]]:
    """The values of seeds by epoch, at the epochs that all of the seeds with any have logged."""
    curves = []
    for entry in results.cell(row, column).values():
        pairs = zip(entry.log.get("epoch", ()), entry.log.get(term, ()), strict=False)
        curve = {at: value for at, value in pairs if at is not None and value is not None}
        curves += [curve] if curve else []
    common = set.intersection(*map(set, curves)) if curves else set()
    return {at: [curve[at] for curve in curves] for at in sorted(common)}
