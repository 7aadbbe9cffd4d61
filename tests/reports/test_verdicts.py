"""Verdicts on the claims of a table, in every way they can fall."""

import pytest
from table_results import image_entry, table_data

from ban_hf.reports.reading import table_of_version_1
from ban_hf.reports.verdicts import verdicts

BEATS = {"beats": ["ban", "teacher"], "says": "BAN beats its teacher"}
EXPLAINS = {"explains": ["cwtm", "ban", "teacher"], "says": "CWTM alone explains the gain"}
SATURATES = {"saturates": ["teacher", "ban", "ban-2", "ban-3"], "says": "Gains saturate"}


def judged(claim: dict, wrong: dict[str, list[int]], paper: dict | None = None):
    """The one verdict of a table, of columns to the number of wrong images of each seed."""
    entries = [
        image_entry(column, seed, count)
        for column, counts in wrong.items()
        for seed, count in enumerate(counts, 1)
    ]
    data = table_data(entries, claims=[claim])
    data["rows"][0]["paper"] = paper or {}
    found = verdicts(table_of_version_1(data))
    return found[0] if found else None


@pytest.mark.parametrize(
    ("ban", "verdict", "start"),
    [
        ([400, 410, 420], "yes", "yes, in 3 of 3 seeds, -9.00 ± 1.00 points (95 % interval -1"),
        ([600, 610, 590], "no", "no, it is worse: lower in 0 of 3 seeds, +10.00 ± 1.00 points"),
        ([400, 600, 510], "not shown", "not shown: lower in 1 of 3 seeds, +0.33 ± 10.02 points"),
        ([499, 499, 499], "not shown", "not shown: lower in 3 of 3 seeds, -0.10 ± 0.00 points"),
    ],
)
def test_beats(ban, verdict, start):
    found = judged(BEATS, {"teacher": [500] * 3, "ban": ban})
    assert (found.row, found.says, found.verdict) == ("net", BEATS["says"], verdict)
    assert found.sentence.startswith(f"BAN beats its teacher: {start}")
    assert found.paper is None
    assert "The paper" not in found.sentence


def test_one_seed_shows_nothing_of_another():
    """However far apart its two networks are: whether a third would be, nobody measured."""
    cells = {"teacher": [500], "ban": [400], "ban-2": [300], "cwtm": [500]}
    found = judged(BEATS, cells)
    assert found.verdict == "not shown"
    assert ": lower in 1 of 1 seed, -10.00 points (95 % interval -11." in found.sentence
    assert found.sentence.endswith(", over test items alone).")
    assert judged(BEATS, {name: counts * 2 for name, counts in cells.items()}).verdict == "yes"
    assert judged(BEATS, {"teacher": [500], "ban": [600]}).verdict == "not shown"
    assert judged(EXPLAINS, cells).verdict == judged(SATURATES, cells).verdict == "no gain shown"


def test_what_is_not_measured_is_not_judged():
    for claim in (BEATS, EXPLAINS, SATURATES):
        assert judged(claim, {"teacher": [500] * 2, "ban-3": [400] * 2}) is None
    assert judged(SATURATES, {"teacher": [500] * 2, "ban": [400] * 2}) is None


def test_a_claim_of_no_kind_is_refused():
    with pytest.raises(ValueError, match=r"claims: .*'is': .* beats, explains, saturates"):
        judged({"is": ["ban"], "says": "It is"}, {"ban": [1]})


@pytest.mark.parametrize(
    ("ban", "cwtm", "verdict", "why"),
    [
        (400, 480, "no", "no, it gains 2.00 of BAN's 10.00 points (20 %, interval "),
        (400, 520, "no", "no, it gains -2.00 of BAN's 10.00 points (-20 %, interval -"),
        (400, 400, "yes", "yes, it gains 10.00 of BAN's 10.00 points (100 %, interval 100 to 100"),
        (400, 380, "yes", "yes, it gains 12.00 of BAN's 10.00 points (120 %, interval "),
        (500, 400, "no gain shown", "no gain shown to explain: BAN minus Teacher is +0.00 ± 0.00"),
        (600, 400, "no gain shown", "no gain shown to explain: BAN minus Teacher is +10.00 ± 0.00"),
    ],
)
def test_explains(ban, cwtm, verdict, why):
    found = judged(EXPLAINS, {"teacher": [500] * 2, "ban": [ban] * 2, "cwtm": [cwtm] * 2})
    assert found.verdict == verdict
    assert found.sentence.startswith(f"CWTM alone explains the gain: {why}")


def test_a_gain_that_is_neither_there_nor_short_is_not_shown():
    wrong = {"teacher": [500, 500], "ban": [400, 400], "cwtm": [350, 510]}
    assert judged(EXPLAINS, wrong).verdict == "not shown"


def test_explanations_keep_to_the_seeds_that_all_three_have():
    """BAN gains in the seeds that CWTM has; what it does in the third is not set against CWTM."""
    wrong = {"teacher": [500] * 3, "ban": [400, 400, 900], "cwtm": [400, 400]}
    found = judged(EXPLAINS, wrong)
    assert found.verdict == "yes"
    assert "it gains 10.00 of BAN's 10.00 points" in found.sentence


@pytest.mark.parametrize(
    ("wrong", "verdict", "why"),
    [
        ((500, 400, 401, 399), "yes", "yes, after generation 1: BAN minus Teacher is -10.00 ± "),
        ((500, 400, 300, 300), "yes", "yes, after generation 2: "),
        ((500, 501, 300, 400), "yes", "yes, after generation 2: "),
        ((500, 400, 300, 200), "no", "no, not within 3 generations: "),
        ((500, 500, 500, 400), "no", "no, not within 3 generations: "),
        ((500, 501, 600, 700), "no gain shown", "no gain shown from any generation to the next: "),
        ((500, 400, 300), "no", "no, not within 2 generations: "),
    ],
)
def test_saturates(wrong, verdict, why):
    columns = dict(zip(SATURATES["saturates"], wrong, strict=False))
    found = judged(SATURATES, {name: [count] * 2 for name, count in columns.items()})
    assert found.verdict == verdict
    assert found.sentence.startswith(f"Gains saturate: {why}")
    assert found.sentence.count(" minus ") == len(wrong) - 1


@pytest.mark.parametrize(
    ("claim", "figures", "paper", "end"),
    [  # figures in the order of the claim's columns
        (BEATS, (16.69, 17.69), "yes", " The paper: 17.69 to 16.69, yes."),
        (BEATS, (17.8, 17.69), "no", " The paper: 17.69 to 17.80, no."),
        (BEATS, (17.69, 17.69), "no difference", " The paper: 17.69 to 17.69, no difference."),
        (BEATS, (None, 17.69), None, "."),
        (EXPLAINS, (17.42, 16.69, 17.69), "in part", "The paper: 0.27 of 1.00 (27 %), in part."),
        (EXPLAINS, (16.5, 16.69, 17.69), "yes", "The paper: 1.19 of 1.00 (119 %), yes."),
        (EXPLAINS, (17.7, 16.69, 17.69), "no", "The paper: -0.01 of 1.00 (-1 %), no."),
        (EXPLAINS, (15.0, 16.5, 16.0), "no gain", "The paper: 1.00 of -0.50, no gain."),
        (SATURATES, (17.69, 16.62, 16.44, 16.72), "yes", "16.72, yes, after generation 2."),
        (SATURATES, (17.16, 16.26, 16.3, 15.5), "no", "15.50, no, not within 3 generations."),
        (SATURATES, (16.87, 16.13, 16.13, None), "yes", "16.13, yes, after generation 1."),
        (SATURATES, (16.0, 16.1, 16.2, 16.3), "no gain", "16.00, 16.10, 16.20, 16.30, no gain."),
        (SATURATES, (16.0, 15.0, None, 14.0), None, "."),
    ],
)
def test_the_paper_s_own_figures_stand_beside(claim, figures, paper, end):
    columns = claim[next(kind for kind in claim if kind != "says")]
    theirs = dict(zip(columns, figures, strict=True))
    found = judged(claim, {name: [500] * 2 for name in columns}, theirs)
    assert found.paper == paper
    assert found.sentence.endswith(end)
    assert ("The paper" in found.sentence) == (paper is not None)
    assert found.verdict == ("not shown" if claim is BEATS else "no gain shown")
