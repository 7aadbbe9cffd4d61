"""Pictures of what the networks of a row do: their calibration, agreement and gradient."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from ban_hf.lineage.family_results import spread
from ban_hf.reports.figure_style import (
    COLOURS,
    DASHES,
    LABEL,
    Entry,
    Page,
    Picture,
    View,
    head_panel,
)
from ban_hf.reports.outcomes import Array, unpack_classes
from ban_hf.reports.plotting import BLUE, GREY, INK, Label, style_axes, write_labels

Bins = list[tuple[float, float, float]]  # images, mean confidence, accuracy
Curve = dict[float, float]  # a logged value by epoch

FEW = 0.005  # of all images; the accuracy of fewer in a bin says little
SIDE = 4.6  # of a square panel, inches
SHADES = LinearSegmentedColormap.from_list("shades", ["#EEF5FA", BLUE])
TERMS = {  # of a log, see `ban_hf.training.diagnosis`; what they are and what a panel says below
    "ground_truth_term": ("At the label", r"$q_* - p_*$"),
    "dark_knowledge_term": ("Off the label: dark knowledge", r"$\sum_{i \neq *}\ |q_i - p_i|$"),
}


def draw_reliability(view: View, rows: Sequence[str]) -> Picture | None:
    """Accuracy by confidence of each generation of one row."""
    (row,) = rows
    pooled = {c: pool_bins(view.entries(row, c).values()) for c in view.line("generations")}
    pooled = {column: bins for column, bins in pooled.items() if bins}
    if not pooled:
        return None
    page = Page("Confidence and accuracy", view.note(rows, how="pooled over"), SIDE + 0.9)
    axes = page.panel(0.85, 0.15, SIDE, SIDE)
    labels: list[Label] = []
    for (column, bins), colour in zip(pooled.items(), itertools.cycle((INK, *COLOURS))):
        least = FEW * sum(n for n, _, _ in bins)
        enough = [(100 * x, 100 * y) for n, x, y in bins if n >= least]
        few = [(100 * x, 100 * y) for n, x, y in bins if n < least]
        axes.plot(*zip(*enough, strict=True), "-o", color=colour, linewidth=2, ms=5, zorder=3)
        if few:
            axes.plot(*zip(*few, strict=True), "o", color=colour, alpha=0.3, ms=4, mew=0)
        labels.append(
            (enough[-1][1], view.heading(column) + _calibration(view, row, column), colour)
        )
    limit = 10 * math.ceil(10 * max(max(x, y) for bins in pooled.values() for _, x, y in bins))
    axes.plot([0, limit], [0, limit], color=GREY, linewidth=1, linestyle=DASHES, zorder=1)
    axes.set(xlim=(0, limit), ylim=(0, limit))
    axes.set_xlabel("Confidence in the predicted class (%)", color=INK, fontsize=11)
    axes.set_ylabel("Accuracy (%)", color=INK, fontsize=11)
    style_axes(axes, "both")
    write_labels(axes, labels, LABEL / SIDE)
    return (
        page.figure,
        "Accuracy of the test images by the confidence of their prediction, all seeds together; "
        "on the dashed line the two are equal, below it a network is overconfident. ECE: their "
        f"mean distance. Faint: bins of fewer than {100 * FEW:g} % of the images.",
    )


def pool_bins(entries: Iterable[Entry]) -> Bins:
    """Bins of several networks as those of one that saw all their images; empty bins left out.

    Their confidence and accuracy are means over images, so that networks count by their images.
    """
    networks = [bins for entry in entries if (bins := entry.get("reliability"))]
    pooled = []
    for alike in zip(*networks, strict=True):
        known = [one for one in alike if one[0]]
        if n := sum(one[0] for one in known):
            pooled.append((n, *(sum(one[0] * one[k] for one in known) / n for k in (1, 2))))
    return pooled


def _calibration(view: View, row: str, column: str) -> str:
    errors = [entry["test"].get("ece") for entry in view.entries(row, column).values()]
    if (ece := spread(error for error in errors if error is not None)) is None:
        return ""
    return f": ECE {ece['mean']:.1f}" + (f" ± {ece['std']:.1f} %" if ece["std"] else " %")


def draw_agreement(view: View, rows: Sequence[str]) -> Picture | None:
    """How many test images two generations of one row put into the same class."""
    (row,) = rows
    columns = [c for c in view.line("generations") if _predictions(view, row, c)]
    matrix = agreement(view, row, columns)
    off_diagonal = ~np.eye(len(columns), dtype=bool)
    known = matrix[off_diagonal & ~np.isnan(matrix)]
    if not known.size:
        return None
    page = Page("Agreement between generations", view.note(rows, how="mean over"), SIDE + 0.8)
    axes = page.panel(2.2, 0.15, SIDE, SIDE)
    low, high = known.min(), known.max()
    shown = np.where(off_diagonal, matrix, np.nan)  # that a network agrees with itself is no news
    axes.imshow(shown, cmap=SHADES, vmin=low - 0.2 * (high - low) - 0.01, vmax=high + 0.01)
    for i, k in itertools.product(range(len(columns)), repeat=2):
        if not np.isnan(shown[i, k]):
            colour = "white" if matrix[i, k] > (low + high) / 2 else INK
            axes.text(k, i, f"{matrix[i, k]:.1f}", ha="center", va="center", size=12, color=colour)
    headings = [view.heading(column) for column in columns]
    axes.set_xticks(range(len(columns)), headings)
    axes.set_yticks(range(len(columns)), headings)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, length=0, labelsize=10.5)
    says = "Percent of the test images that two networks of a seed put into the same class"
    reference = agreement_of_seeds(view, row, columns[0])
    if reference is not None:
        other = f"{view.heading(columns[0])} networks of different seeds agree on {reference:.1f} %"
        page.text(2.2, SIDE + 0.6, f"For comparison: {other}")
        says += f", mean over seeds; for comparison: {other}"
    return page.figure, says + "."


def agreement(view: View, row: str, columns: Sequence[str]) -> Array:
    """Agreement of the columns of a row within a seed, percent, mean over seeds.

    Returns:
        `(N, N)` of N columns; NaN where no seed has both.
    """
    predicted = [_predictions(view, row, column) for column in columns]
    matrix = np.full((len(columns), len(columns)), np.nan)
    for (i, a), (k, b) in itertools.product(enumerate(predicted), repeat=2):
        if seeds := a.keys() & b.keys():
            matrix[i, k] = statistics.fmean(_share_alike(a[seed], b[seed]) for seed in seeds)
    return matrix


def agreement_of_seeds(view: View, row: str, column: str) -> float | None:
    """Agreement of the networks of a column, each with that of every other seed; mean, percent."""
    pairs = list(itertools.combinations(_predictions(view, row, column).values(), 2))
    return statistics.fmean(_share_alike(a, b) for a, b in pairs) if pairs else None


def _share_alike(a: Array, b: Array) -> float:
    return 100 * float(np.mean(a == b))


def _predictions(view: View, row: str, column: str) -> dict[int, Array]:
    packed = {
        seed: (entry.get("outcomes") or {}).get("predicted")
        for seed, entry in view.entries(row, column).items()
    }
    return {seed: unpack_classes(text) for seed, text in packed.items() if text}


def draw_gradient(view: View, rows: Sequence[str]) -> Picture | None:
    """The two parts of a student's gradient over its training, of the students of one row."""
    (row,) = rows
    columns = view.line("generations") or [c for c, one in view.columns.items() if one["in_paper"]]
    students = [c for c in columns if all(log_curves(view, row, c, term) for term in TERMS)]
    if not students:
        return None
    note = view.note(rows, "q: student, p: its teacher, *: the label", how="mean over")
    page = Page("The gradient of a student, taken apart", note, 4.5)
    for k, (term, (heading, formula)) in enumerate(TERMS.items()):
        axes = page.panel(0.85 + 3.95 * k, 0.4, 3.1, 3.4)
        head_panel(axes, heading)
        labels: list[Label] = []
        for column, colour in zip(students, itertools.cycle(COLOURS)):
            curves = log_curves(view, row, column, term)
            mean = mean_curve(curves)
            for curve in curves.values() if len(curves) > 1 else ():
                axes.plot(list(curve), list(curve.values()), color=colour, alpha=0.2, lw=1)
            if mean:
                axes.plot(list(mean), list(mean.values()), color=colour, lw=2, marker="o", ms=2.5)
                labels.append((list(mean.values())[-1], view.heading(column), colour))
        if term == "ground_truth_term":  # signed
            axes.axhline(0, color=INK, linewidth=1, linestyle=DASHES, zorder=1)
        axes.set_xlabel("Epoch", color=INK, fontsize=11)
        axes.set_ylabel(f"{formula}, mean over {view.measure.items}", color=INK, fontsize=10)
        style_axes(axes)
        axes.margins(x=0.02)
        axes.tick_params(labelsize=9.5)
        write_labels(axes, labels if k else [], LABEL / 3.4)
    return (
        page.figure,
        "The gradient of the loss by the logits over training, mean over seeds (faint: each): the "
        "part of the label, negative where the student is less sure of it than its teacher, and "
        "the dark knowledge, how far the two are apart on all other classes.",
    )


def log_curves(view: View, row: str, column: str, term: str) -> dict[int, Curve]:
    """A logged value by epoch, of each seed that logged it."""
    curves = {}
    for seed, entry in view.entries(row, column).items():
        log = entry.get("log") or {}
        pairs = zip(log.get("epoch", []), log.get(term, []), strict=False)
        curves[seed] = {epoch: value for epoch, value in pairs if value is not None}
    return {seed: curve for seed, curve in curves.items() if curve}


def mean_curve(curves: Mapping[int, Curve]) -> Curve:
    """Mean over seeds, at the epochs that all of them logged."""
    common = set.intersection(*(set(curve) for curve in curves.values()))
    return {at: statistics.fmean(curve[at] for curve in curves.values()) for at in sorted(common)}
