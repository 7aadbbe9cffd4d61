"""Intervals and paired differences of a table: closed forms, and what a bootstrap must tend to."""

import math
import time

import msgspec
import numpy as np
import pytest
from table_results import image_entry, labels, table, text_entry

from ban_hf.lineage.results import Entry, Results, family_results, generation_column, pack_classes
from ban_hf.reports.statistics import estimate, paired_difference, share_of_gain

NORMAL = 1.96


def flips(rate: float, seed: int, n: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


def of_images(cells: dict[str, list], n: int = 4000, missing: tuple = ()) -> Results:
    """Columns to the wrong images of each seed."""
    entries = [
        image_entry(column, seed, wrong)
        for column, seeds in cells.items()
        for seed, wrong in enumerate(seeds, 1)
        if (column, seed) not in missing
    ]
    return table(entries, labels=pack_classes(labels(n)))


def test_a_difference_in_no_item_or_in_all_has_no_spread():
    nothing, everything = np.zeros(4000, bool), np.ones(4000, bool)
    results = of_images({"teacher": [everything] * 3, "ban": [nothing] * 3, "cwtm": [nothing] * 3})
    found = paired_difference(results, "net", "ban", "teacher")
    assert (found.mean, found.std) == (-100, 0)
    assert (found.low, found.high) == pytest.approx((-100, -100))
    assert (found.values, found.seeds, found.better) == ((-100.0,) * 3, (1, 2, 3), 3)
    same = paired_difference(results, "net", "cwtm", "ban")
    assert (same.mean, same.low, same.high, same.better) == (0, 0, 0, 0)


def test_a_constant_ratio_of_what_varies_stays_it_whatever_is_drawn():
    """Every word costs 0.1 nats less: perplexities differ, their ratio does not."""
    words = np.random.default_rng(0).normal(3, 1, 20_000)
    results = table(
        [text_entry("teacher", 1, words), text_entry("ban", 1, words - 0.1)], metric="perplexity"
    )
    found = paired_difference(results, "net", "ban", "teacher")
    base = estimate(results, "net", "teacher")
    factor = math.exp(-0.1) - 1
    assert found.mean == pytest.approx(factor * math.exp(words.mean()), rel=1e-6)
    # factor < 0: the larger perplexity has the larger gain
    assert found.low == pytest.approx(factor * base.high, rel=1e-3)
    assert found.high == pytest.approx(factor * base.low, rel=1e-3)


def test_the_text_metric_is_the_perplexity_of_all_words():
    words = np.concatenate([np.full(500, 2.0), np.full(250, 5.0)])  # blocks of unlike size
    results = table([text_entry("teacher", 1, words)], metric="perplexity")
    found = estimate(results, "net", "teacher")
    assert found.mean == pytest.approx(math.exp(3.0))
    assert (found.low, found.high) == pytest.approx((math.exp(2), math.exp(5)))


def test_the_interval_of_coin_flips_is_the_normal_one():
    results = of_images({"teacher": [flips(0.3, 1)], "ban": [flips(0.2, 2)]})
    one = estimate(results, "net", "teacher")
    p = one.mean / 100
    width = 2 * NORMAL * 100 * math.sqrt(p * (1 - p) / 4000)
    assert one.high - one.low == pytest.approx(width, rel=0.08)
    assert one.low + one.high == pytest.approx(2 * one.mean, abs=0.1 * width)
    both = paired_difference(results, "net", "ban", "teacher")
    gap = flips(0.2, 2).astype(float) - flips(0.3, 1)
    width = 2 * NORMAL * 100 * gap.std() / math.sqrt(4000)
    assert both.high - both.low == pytest.approx(width, rel=0.08)


def test_drawing_kinds_of_items_is_drawing_items():
    wrong = [[flips(0.3, 10 + s), flips(0.2, 20 + s)] for s in range(3)]
    columns = {"teacher": [w[0] for w in wrong], "ban": [w[1] for w in wrong]}
    found = paired_difference(of_images(columns), "net", "ban", "teacher")
    generator = np.random.default_rng(5)
    gaps = np.array([b.astype(float) - a for a, b in wrong])  # (S, N)
    drawn = [
        100 * gaps[generator.integers(0, 3, 3)][:, generator.integers(0, 4000, 4000)].mean()
        for _ in range(1000)
    ]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.25)


def test_seeds_that_differ_widen_the_interval():
    """No item tells a seed's difference from another's but the seed itself."""
    base, better, worse = (np.arange(4000) < n for n in (2000, 1600, 2400))
    results = of_images({"teacher": [base] * 2, "ban": [better, worse]})
    found = paired_difference(results, "net", "ban", "teacher")
    assert (found.mean, found.better) == (0, 1)
    assert found.std == pytest.approx(10 * math.sqrt(2))
    assert found.low < -9
    assert found.high > 9


def test_swapping_columns_negates():
    results = of_images({"teacher": [flips(0.3, s) for s in (1, 2)], "ban": [flips(0.2, 3)] * 2})
    there = paired_difference(results, "net", "ban", "teacher")
    back = paired_difference(results, "net", "teacher", "ban")
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert back.values == tuple(-value for value in there.values)
    assert (there.better, back.better) == (2, 0)


def test_pairing_is_narrower_than_not_pairing():
    """Two networks that fail on much the same images, and the second on the images of another."""
    hard = flips(0.3, 1)
    alike, unlike = hard & flips(0.9, 2), np.roll(hard & flips(0.9, 2), 1777)
    results = of_images({"teacher": [hard], "ban": [alike], "cwtm": [unlike]})
    paired = paired_difference(results, "net", "ban", "teacher")
    unpaired = paired_difference(results, "net", "cwtm", "teacher")
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_one_seed_has_an_interval_over_items_alone():
    results = of_images({"teacher": [flips(0.3, 1)], "ban": [flips(0.2, 2)]})
    found = paired_difference(results, "net", "ban", "teacher")
    assert (found.std, found.items_only) == (None, True)
    assert found.low < found.mean < found.high
    two = of_images({"teacher": [flips(0.3, 1)] * 2, "ban": [flips(0.2, 2)] * 2})
    assert not paired_difference(two, "net", "ban", "teacher").items_only


def test_only_seeds_that_both_have_are_paired():
    cells = {"teacher": [flips(0.3, s) for s in (1, 2, 3)], "ban": [flips(0.2, 4)] * 3}
    results = of_images(cells, missing=[("ban", 2)])
    results.entries[0].test["error"] = None  # the first seed's teacher: not finite
    assert paired_difference(results, "net", "ban", "teacher").seeds == (3,)
    assert estimate(results, "net", "ban").seeds == (1, 3)
    assert paired_difference(results, "net", "ban", "teacher", seeds=[1, 2]) is None
    assert paired_difference(results, "net", "ban", "nothing") is None
    assert estimate(results, "another", "ban") is None


def test_other_test_items_are_not_paired():
    entries = [text_entry("teacher", 1, np.ones(1000)), text_entry("ban", 1, np.ones(1001))]
    with pytest.raises(ValueError, match=r"'teacher', seed 1.*other test items than column 'ban'"):
        paired_difference(table(entries, metric="perplexity"), "net", "ban", "teacher")


def test_a_share_of_the_gain():
    base, full = (np.arange(4000) < n for n in (2000, 1200))
    half, none = np.arange(4000) < 1600, base
    cells = {"teacher": base, "ban": full, "cwtm": half, "ban-2": none, "ban-3": full}
    results = of_images({name: [wrong] * 3 for name, wrong in cells.items()})
    found = share_of_gain(results, "net", "cwtm", "teacher", "ban")
    assert found.value == pytest.approx(0.5)
    assert 0.4 < found.low < 0.5 < found.high < 0.6
    nothing = share_of_gain(results, "net", "ban-2", "teacher", "ban")
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    everything = share_of_gain(results, "net", "ban-3", "teacher", "ban")
    assert (everything.value, everything.low, everything.high) == (1, 1, 1)


def test_there_is_no_share_of_what_may_be_no_gain():
    cells = {"teacher": [flips(0.3, 1)], "ban": [flips(0.3, 2)], "cwtm": [flips(0.2, 3)]}
    results = of_images(cells)
    assert share_of_gain(results, "net", "cwtm", "teacher", "ban") is None
    assert share_of_gain(results, "net", "cwtm", "ban", "teacher") is None
    assert share_of_gain(results, "net", "nothing", "teacher", "ban") is None


def test_the_same_results_give_the_same_interval_and_soon():
    teacher, ban = ([flips(0.3, k + s, 10_000) for s in range(3)] for k in (0, 9))
    results = of_images({"teacher": teacher, "ban": ban}, 10_000)
    start = time.process_time()
    first = paired_difference(results, "net", "ban", "teacher")
    assert time.process_time() - start < 2
    assert paired_difference(results, "net", "ban", "teacher") == first


def test_without_outcomes_there_is_no_interval_but_that_of_one_error_rate():
    """The error of n items in one seed says how many were wrong, and no difference which."""
    wrong = flips(0.25, 3)
    results = of_images({"teacher": [wrong], "ban": [flips(0.2, 2)]})
    whole = estimate(results, "net", "teacher")
    columns = [generation_column(0, "labels"), generation_column(1, "BAN-1")]

    def family(seeds: int) -> Results:
        entries = [
            Entry(row="family", column=c.name, seed=s, test={"error": whole.mean, "n": 4000})
            for c in columns
            for s in range(seeds)
        ]
        return family_results(
            title="t",
            metric="error",
            dataset={"name": "digits"},
            columns=columns,
            entries=entries,
            seeds=range(seeds),
        )

    alone = estimate(family(1), "family", "generation-0")
    assert (alone.low, alone.high) == (whole.low, whole.high)
    difference = paired_difference(family(1), "family", "generation-1", "generation-0")
    assert (difference.mean, difference.low, difference.high) == (0, None, None)
    assert (difference.is_better, difference.is_worse) == (False, False)
    assert estimate(family(2), "family", "generation-0").low is None


def test_where_greater_is_better_a_higher_value_is_shown_to_be_better():
    """The accuracy of a network is 100 minus its error, so each verdict stays what it was."""
    cells = {"teacher": [flips(0.3, s) for s in (1, 2)], "ban": [flips(0.2, 3)] * 2}
    cells["cwtm"] = [flips(0.25, 4)] * 2
    error = of_images(cells)
    entries = tuple(
        msgspec.structs.replace(e, test={"accuracy": 100 - e.test["error"]}) for e in error.entries
    )
    accuracy = msgspec.structs.replace(error, metric="accuracy", entries=entries)
    lower, higher = (paired_difference(r, "net", "ban", "teacher") for r in (error, accuracy))
    assert (higher.low, higher.high) == pytest.approx((-lower.high, -lower.low))
    assert (higher.better, higher.is_better, higher.is_worse) == (2, True, False)
    assert higher.gain == pytest.approx(lower.gain)
    back = paired_difference(accuracy, "net", "teacher", "ban")
    assert (back.better, back.worse, back.is_better, back.is_worse) == (0, 2, False, True)
    shares = [share_of_gain(r, "net", "cwtm", "teacher", "ban") for r in (error, accuracy)]
    assert shares[0].value == pytest.approx(shares[1].value)
    assert (shares[0].low, shares[0].high) == pytest.approx((shares[1].low, shares[1].high))
