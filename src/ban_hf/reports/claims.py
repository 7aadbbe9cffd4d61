"""What a table claims, and whether the figures bear it out, whichever way they fall.

A rule decides each claim from the intervals of `reports.statistics`, and from nothing else.
A difference is *shown* where its whole 95 % interval lies on one side of 0, and in more than one
seed: of one alone nobody knows what another would do. What is not shown is not thereby disproved:
few seeds and few items leave wide intervals. The paper's figures are of one run each and have no
intervals: of them a verdict goes by the numbers as they are printed.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ban_hf.errors import BANError
from ban_hf.lineage.family_results import Results
from ban_hf.reports.report import cell
from ban_hf.reports.statistics import Difference, measured, paired_difference, share_of_gain

UNITS = {"error": "points", "perplexity": "in perplexity"}
NO_GAIN = "no gain shown"


@dataclass(frozen=True)
class Verdict:
    """What the figures of a row say to a claim.

    Args:
        row: name of the row.
        says: the claim.
        verdict: `yes`, `no`, `not shown` or `no gain shown`.
        sentence: claim, verdict and the figures it follows from, then the paper's.
        paper: what the paper's own figures say; None where it has none. Besides the words above
            `in part` (a share of the gain), `no gain` and `no difference`.
    """

    row: str
    says: str
    verdict: str
    sentence: str
    paper: str | None


@dataclass(frozen=True)
class _Case:
    """A claim in a row of the results."""

    results: Results
    row: Mapping[str, Any]
    columns: Sequence[str]

    def difference(self, column: str, base: str, seeds: Any = None) -> Difference | None:
        return paired_difference(self.results, self.row["name"], column, base, seeds=seeds)

    def heading(self, column: str) -> str:
        columns = self.results["columns"]
        return next((c["heading"] for c in columns if c["name"] == column), column)

    @property
    def unit(self) -> str:
        return UNITS[self.results["metric"]]

    @property
    def paper(self) -> list[float | None]:
        """The paper's figures of the claim's columns."""
        figures = self.row.get("paper") or {}
        return [figures.get(column) for column in self.columns]


def verdicts(results: Results) -> list[Verdict]:
    """Every claim of the table in every row that has measured what it is about.

    Raises:
        ValueError: if a claim is of no kind that there is a rule for.
    """
    found = []
    for row, claim in itertools.product(results["rows"], results["claims"]):
        kind = next((kind for kind in RULES if kind in claim), None)
        if kind is None:
            raise BANError(f"claims: {claim} is of no kind we know: {', '.join(RULES)}.")
        rule, paper_s = RULES[kind]
        case = _Case(results, row, claim[kind])
        if (ours := rule(case)) is None:
            continue
        verdict, why = ours
        sentence, paper = f"{claim['says']}: {verdict}{why}.", paper_s(case)
        if paper is not None:
            sentence += f" The paper: {paper[1]}, {paper[0]}{paper[2]}."
        found.append(Verdict(row["name"], claim["says"], verdict, sentence, paper and paper[0]))
    return found


def interval_of(difference: Difference) -> str:
    """The 95 % interval in words."""
    return f"{difference.low:+.2f} to {difference.high:+.2f}"


def _amount(case: _Case, difference: Difference) -> str:
    over = ", over test items alone" if difference.items_only else ""
    figure = f"{cell(vars(difference), 2, sign='+')} {case.unit}"
    return f"{figure} (95 % interval {interval_of(difference)}{over})"


def _minus(case: _Case, column: str, base: str, difference: Difference) -> str:
    names = f"{case.heading(column)} minus {case.heading(base)}"
    return f"{names} is {_amount(case, difference)}"


def _beats(case: _Case) -> tuple[str, str] | None:
    """Column, base: `yes` if column - base is shown to be below 0, `no` if above.

    `no` says that the column is worse. Where neither is shown it is `not shown`.
    """
    difference = case.difference(*case.columns)
    if difference is None:
        return None
    n = len(difference.seeds)
    seeds = f"{difference.lower} of {n} seed{'s' if n > 1 else ''}, {_amount(case, difference)}"
    if difference.is_below:
        return "yes", f", in {seeds}"
    if difference.is_above:
        return "no", f", it is worse: lower in {seeds}"
    return "not shown", f": lower in {seeds}"


def _beats_in_the_paper(case: _Case) -> tuple[str, str, str] | None:
    """`yes` if the column's figure is lower, `no` if higher, else `no difference`."""
    column, base = case.paper
    if column is None or base is None:
        return None
    verdict = "yes" if column < base else "no" if column > base else "no difference"
    return verdict, f"{base:.2f} to {column:.2f}", ""


def _explains(case: _Case) -> tuple[str, str] | None:
    """Column, full, base: whether the column alone gains what `full` gains on the base.

    In this order, in the seeds that all three have: `no gain shown` unless full - base is shown to
    be below 0; `no` if column - full is shown to be above 0, so that full is better; `yes` if
    column - base is shown to be below 0. `Yes` means that it gains and no shortfall is shown, which
    is less than being equal: the share of the gain and its interval stand beside it. Else `not
    shown`.
    """
    column, full, base = case.columns
    cells = [measured(case.results, case.row["name"], name) for name in case.columns]
    seeds = cells[0].keys() & cells[1].keys() & cells[2].keys()
    gain, own, shortfall = (
        case.difference(*pair, seeds) for pair in ((full, base), (column, base), (column, full))
    )
    if gain is None or own is None or shortfall is None:
        return None
    if not gain.is_below:
        return NO_GAIN, f" to explain: {_minus(case, full, base, gain)}"
    share = share_of_gain(case.results, case.row["name"], column, base, full)
    part = "" if share is None else f" ({_percent(share.value, share.low, share.high)})"
    gained = f"it gains {-own.mean:.2f} of {case.heading(full)}'s {-gain.mean:.2f} {case.unit}"
    why = f", {gained}{part}; {_minus(case, column, full, shortfall)}"
    if shortfall.is_above:
        return "no", why
    return ("yes" if own.is_below else "not shown"), why


def _percent(share: float, low: float, high: float) -> str:
    return f"{100 * share:.0f} %, interval {100 * low:.0f} to {100 * high:.0f} %"


def _explains_in_the_paper(case: _Case) -> tuple[str, str, str] | None:
    """By the share of the gain: `yes` from 1, `no` to 0, between them `in part`."""
    column, full, base = case.paper
    if column is None or full is None or base is None:
        return None
    own, gain = base - column, base - full
    figures = f"{own:.2f} of {gain:.2f}"
    if gain <= 0:
        return "no gain", figures, ""
    verdict = "yes" if own >= gain else "no" if own <= 0 else "in part"
    return verdict, f"{figures} ({100 * own / gain:.0f} %)", ""


def _saturates(case: _Case) -> tuple[str, str] | None:
    """Columns in the order of generations: `yes` if after some generation no gain is shown.

    A step is a generation minus the one before; the first column that is not measured ends the
    sequence, and there must be two steps. `no gain shown` if no step is shown to be below 0; `no`
    if the last one is: it goes on within the generations there are. Else `yes`, after the last
    generation whose step is shown.
    """
    steps, why = [], []
    for before, after in itertools.pairwise(case.columns):
        if (step := case.difference(after, before)) is None:
            break
        steps.append(step)
        why.append(_minus(case, after, before, step))
    if len(steps) < 2:
        return None
    shown, listed = [k for k, step in enumerate(steps, 1) if step.is_below], "; ".join(why)
    if not shown:
        return NO_GAIN, f" from any generation to the next: {listed}"
    if shown[-1] == len(steps):
        return "no", f", not within {len(steps)} generations: {listed}"
    return "yes", f", after generation {shown[-1]}: {listed}"


def _saturates_in_the_paper(case: _Case) -> tuple[str, str, str] | None:
    """As ours, a step being shown where the figure is lower than the one before."""
    figures = [x for x in itertools.takewhile(lambda x: x is not None, case.paper) if x is not None]
    if len(figures) < 3:
        return None
    lower = [k for k, (a, b) in enumerate(itertools.pairwise(figures), 1) if b < a]
    listed = ", ".join(f"{figure:.2f}" for figure in figures)
    if not lower:
        return "no gain", listed, ""
    if lower[-1] == len(figures) - 1:
        return "no", listed, f", not within {len(figures) - 1} generations"
    return "yes", listed, f", after generation {lower[-1]}"


#: Kind of a claim: the rule for our figures, and the one for the paper's.
RULES = {
    "beats": (_beats, _beats_in_the_paper),
    "explains": (_explains, _explains_in_the_paper),
    "saturates": (_saturates, _saturates_in_the_paper),
}
