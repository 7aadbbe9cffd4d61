"""What follows from the results: each claim, and whether they support it, either way.

A rule decides each claim from the intervals of `reports.statistics`, and from nothing else. A
difference is *shown* where its whole 95 % interval lies on one side of 0, in more than one seed,
because one seed says nothing of another. A claim that is not shown is not thereby disproved: few
seeds and few items leave wide intervals. The paper's figures are of one run each and have no
intervals; a verdict on them goes by the printed numbers.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ban_hf.lineage.catalog import MEASURES, Metric
from ban_hf.lineage.results import ClaimKind, Results, Row
from ban_hf.reports.statistics import (
    Difference,
    Estimate,
    paired_difference,
    share_of_gain,
    shared_seeds,
)
from ban_hf.reports.tables import MISSING, cell

NO_GAIN = "no gain shown"


@dataclass(frozen=True)
class Verdict:
    """A claim in a row, and whether the results support it."""

    row: str  # name
    says: str
    verdict: str  # `yes`, `no`, `not shown` or `no gain shown`
    sentence: str  # claim, verdict, the figures it follows from, and the paper's
    #: The verdict on the paper's own figures; None where it has none. Besides the words above
    #: `in part` (a share of the gain), `no gain` and `no difference`.
    paper: str | None


@dataclass(frozen=True)
class _Case:
    """A claim in a row of the results."""

    results: Results
    row: Row
    columns: tuple[str, ...]

    def difference(
        self, column: str, base: str, seeds: Collection[int] | None = None
    ) -> Difference | None:
        return paired_difference(self.results, self.row.name, column, base, seeds)

    def minus(self, column: str, base: str, difference: Difference) -> str:
        """A difference in words: `BAN minus Teacher is -9.00 ± 1.00 points (95 % interval ...)`."""
        names = (self.results.column(name).heading for name in (column, base))
        return f"{' minus '.join(names)} is {self.amount(difference)}"

    def amount(self, difference: Difference) -> str:
        digits = self.metric.digits
        figure = f"{cell(difference, digits, sign='+')} {self.metric.unit}"
        if difference.low is None:
            return f"{figure} (no interval)"
        over = ", over test items alone" if difference.items_only else ""
        return f"{figure} (95 % interval {interval_of(difference, digits)}{over})"

    @property
    def metric(self) -> Metric:
        return MEASURES[self.results.metric].leading

    @property
    def paper(self) -> list[float | None]:
        """The paper's figures of the claim's columns."""
        return [self.row.paper.get(column) for column in self.columns]

    def gain(self, before: float, after: float) -> float:
        """By how much a figure is better than another."""
        return after - before if self.metric.greater_is_better else before - after


Ours = tuple[str, str]  # verdict, and why
Theirs = tuple[str, str, str]  # verdict, figures, and what follows the verdict


def verdicts(results: Results) -> list[Verdict]:
    """Every claim in every row that has measured its columns."""
    found = []
    for row, claim in itertools.product(results.rows, results.claims):
        rule, paper_rule = RULES[claim.kind]
        case = _Case(results, row, claim.columns)
        if (ours := rule(case)) is None:
            continue
        verdict, why = ours
        sentence, paper = f"{claim.says}: {verdict}{why}.", paper_rule(case)
        if paper is not None:
            sentence += f" The paper: {paper[1]}, {paper[0]}{paper[2]}."
        found.append(Verdict(row.name, claim.says, verdict, sentence, paper and paper[0]))
    return found


def interval_of(found: Estimate, digits: int, sign: str = "+") -> str:
    """A 95 % interval in words; a dash where there is none."""
    if found.low is None or found.high is None:
        return MISSING
    return f"{found.low:{sign}.{digits}f} to {found.high:{sign}.{digits}f}"


def _beats(case: _Case) -> Ours | None:
    """Column, base: `yes` if the column is shown to be better, `no` if it is shown to be worse.

    Where neither is shown it is `not shown`.
    """
    column, base = case.columns
    difference = case.difference(column, base)
    if difference is None:
        return None
    n, direction = len(difference.seeds), "higher" if case.metric.greater_is_better else "lower"
    of = f"{difference.better} of {n} seed{'s' if n > 1 else ''}, {case.amount(difference)}"
    if difference.is_better:
        return "yes", f", in {of}"
    if difference.is_worse:
        return "no", f", it is worse: {direction} in {of}"
    return "not shown", f": {direction} in {of}"


def _beats_in_the_paper(case: _Case) -> Theirs | None:
    """`yes` if the column's figure is better, `no` if worse, else `no difference`."""
    column, base = case.paper
    if column is None or base is None:
        return None
    gain = case.gain(base, column)
    verdict = "yes" if gain > 0 else "no" if gain < 0 else "no difference"
    return verdict, f"{base:.2f} to {column:.2f}", ""


def _explains(case: _Case) -> Ours | None:
    """Column, full, base: whether the column alone gains what `full` gains on the base.

    In this order, in the seeds that all three have: `no gain shown` unless `full` is shown to be
    better than the base; `no` if the column is shown to be worse than `full`; `yes` if the column
    is shown to be better than the base. `yes` means that it gains and no shortfall is shown, which
    is less than being equal: the share of the gain and its interval say how much. Else `not shown`.
    """
    column, full, base = case.columns
    seeds = shared_seeds(case.results, case.row.name, case.columns)
    gain, own, shortfall = (
        case.difference(*pair, seeds) for pair in ((full, base), (column, base), (column, full))
    )
    if gain is None or own is None or shortfall is None:
        return None
    if not gain.is_better:
        return NO_GAIN, f" to explain: {case.minus(full, base, gain)}"
    share = share_of_gain(case.results, case.row.name, column, base, full)
    part = ""
    if share is not None:
        ends = f"{100 * share.low:.0f} to {100 * share.high:.0f} %"
        part = f" ({100 * share.value:.0f} %, interval {ends})"
    heading = case.results.column(full).heading
    digits = case.metric.digits
    gained = f"{own.gain:.{digits}f} of {heading}'s {gain.gain:.{digits}f} {case.metric.unit}"
    why = f", it gains {gained}{part}; {case.minus(column, full, shortfall)}"
    if shortfall.is_worse:
        return "no", why
    return ("yes" if own.is_better else "not shown"), why


def _explains_in_the_paper(case: _Case) -> Theirs | None:
    """By the share of the gain: `yes` from 1, `no` to 0, between them `in part`."""
    column, full, base = case.paper
    if column is None or full is None or base is None:
        return None
    own, gain = case.gain(base, column), case.gain(base, full)
    figures = f"{own:.2f} of {gain:.2f}"
    if gain <= 0:
        return "no gain", figures, ""
    verdict = "yes" if own >= gain else "no" if own <= 0 else "in part"
    return verdict, f"{figures} ({100 * own / gain:.0f} %)", ""


def _saturates(case: _Case) -> Ours | None:
    """Columns in the order of generations: `yes` if after some generation no gain is shown.

    A step is a generation minus the one before it; the first column that is not measured ends the
    sequence, and there must be two steps. `no gain shown` if no step is shown to be better; `no`
    if the last one is: gains go on to the last generation. Else `yes`, after the last generation
    whose step is shown.
    """
    steps, why = [], []
    for before, after in itertools.pairwise(case.columns):
        if (step := case.difference(after, before)) is None:
            break
        steps.append(step.is_better)
        why.append(case.minus(after, before, step))
    if len(steps) < 2:
        return None
    verdict, since = _since(steps) or (NO_GAIN, " from any generation to the next")
    return verdict, f"{since}: {'; '.join(why)}"


def _saturates_in_the_paper(case: _Case) -> Theirs | None:
    """As ours, a step being shown where the figure is better than the one before."""
    figures = [x for x in itertools.takewhile(lambda x: x is not None, case.paper) if x is not None]
    if len(figures) < 3:
        return None
    steps = [case.gain(*step) > 0 for step in itertools.pairwise(figures)]
    verdict, since = _since(steps) or ("no gain", "")
    return verdict, ", ".join(f"{figure:.2f}" for figure in figures), since


def _since(steps: Sequence[bool]) -> tuple[str, str] | None:
    """Whether gains saturate, and since when; None if no step is a gain."""
    gains = [k for k, is_gain in enumerate(steps, 1) if is_gain]
    if not gains:
        return None
    if gains[-1] == len(steps):
        return "no", f", not within {len(steps)} generations"
    return "yes", f", after generation {gains[-1]}"


Rule = tuple[Callable[[_Case], Ours | None], Callable[[_Case], Theirs | None]]

#: Kind of a claim: the rule for our figures, and the one for the paper's.
RULES: dict[ClaimKind, Rule] = {
    "beats": (_beats, _beats_in_the_paper),
    "explains": (_explains, _explains_in_the_paper),
    "saturates": (_saturates, _saturates_in_the_paper),
}
