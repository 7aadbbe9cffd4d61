"""The pictures: which are drawn, what they show, and that no axis magnifies noise."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from msgspec.structs import replace
from PIL import Image
from test_report import record, small_family

from ban_hf.errors import BANError
from ban_hf.lineage.results import Entry, Results, pack_classes, results_of_records
from ban_hf.reports.figures import (
    LEAST_BARS,
    draw_ablation,
    draw_ensembles,
    draw_generations,
    draw_overview,
    draw_table,
    save_overview,
    write_figures,
)
from ban_hf.reports.network_figures import (
    agreement,
    agreement_of_seeds,
    draw_agreement,
    draw_gradient,
    draw_reliability,
    pool_bins,
    wilson,
)
from ban_hf.reports.reading import table_of_version_1
from ban_hf.reports.style import BLUE, INK, ORANGE

NAMES = ("teacher", "ban-1", "ban-2", "ens2", "labels-ens2")
HEADINGS = ("Teacher", "BAN-1", "BAN-2", "Ens*2", "2 on labels")
ERRORS = {  # by seed
    "teacher": (80.0, 82.0),
    "ban-1": (78.0, 79.0),
    "ban-2": (77.0, 78.0),
    "ens2": (75.0, 76.0),
    "labels-ens2": (76.0, 78.0),
}
PAPER = {"teacher": 17.69, "ban-1": 16.62, "ban-2": 16.44, "ens2": 15.39}
NO_TEACHER = ("teacher", 2)  # column and seed
PREDICTED = {  # of four images, by seed
    "teacher": ([0, 1, 2, 3], [0, 1, 2, 2]),
    "ban-1": ([0, 1, 2, 0], [0, 0, 0, 2]),
    "ban-2": ([1, 1, 2, 0], [0, 0, 0, 2]),
}


def entry(row: str, column: str, seed: int, *, is_text: bool = False) -> dict:
    """Of seed 1 or 2."""
    value = ERRORS[column][seed - 1]
    made = {"row": row, "column": column, "seed": seed, "log": {}}
    if column.startswith("ban"):
        # the second seed logs one epoch more, the first ends with an evaluation alone
        epochs, last = [1.0, 2.0, 3.0], 0.2 * seed if seed == 2 else None
        made["log"] = {
            "epoch": epochs,
            "ground_truth_term": [-0.1 * seed, -0.1 * seed, last and -0.1 * seed],
            "dark_knowledge_term": [0.2 * seed, 0.2 * seed, last],
            "eval_error": [None, 1.0, 1.0],
        }
    if is_text:
        return made | {"test": {"perplexity": value}, "outcomes": {"nll": [1.0], "words": [2]}}
    made |= {"test": {"error": value, "ece": 4.0 + seed}}
    if column in PREDICTED:
        classes = np.array(PREDICTED[column][seed - 1])
        made["outcomes"] = {"predicted": pack_classes(classes)}
        made["reliability"] = [[0, None, None], [100 * seed, 0.1 * seed, 0.3], [1, 0.9, 0.0]]
    return made


def table(rows=("a",), *, without=lambda entry: False, **changes) -> Results:
    """The results of a table, without some of its entries."""
    data = table_data(rows, **changes)
    data["entries"] = [entry for entry in data["entries"] if not without(entry)]
    return table_of_version_1(data)


def table_data(rows=("a",), *, is_text: bool = False, seeds=(1, 2), paper=PAPER) -> dict:
    return {
        "table": "table2",
        "source": "Furlanello et al. 2018, Table 2",
        "task": "text" if is_text else "image",
        "dataset": {"name": "cifar100"},
        "seeds": list(seeds),
        "order": {"rows": list(rows), "columns": list(NAMES)},
        "claims": [],
        "command": "",
        "hardware": "CPU",
        "versions": {},
        "labels": None if is_text else pack_classes(np.array([0, 1, 2, 3])),
        "title": "DenseNets on CIFAR-100",
        "metric": "perplexity" if is_text else "error",
        "budget": {"name": "cpu", "says": "3 of 200 epochs"},
        "columns": [
            {"name": n, "heading": h, "in_paper": n in PAPER, "ensemble": "ens" in n}
            for n, h in zip(NAMES, HEADINGS, strict=True)
        ],
        "rows": [{"name": r, "heading": f"Net {r}", "paper": dict(paper)} for r in rows],
        "figures": {
            "generations": ["teacher", "ban-1", "ban-2"],
            "ensembles": {
                "Born-again": ["ban-1", "ens2"],
                "Label-trained": ["teacher", "labels-ens2"],
            },
            "ablation": ["teacher", "ban-1", "ban-2"],
        },
        "entries": [
            entry(r, c, seed, is_text=is_text) for r in rows for c in NAMES for seed in seeds
        ],
    }


def close(pairs, wanted) -> bool:
    return len(pairs) == len(wanted) and np.allclose(pairs, wanted)


def drawn(axes, marker: str = "o") -> list[list[tuple[float, float]]]:
    """What lines with a marker go through, as pairs, in the order they are drawn."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [list(zip(*line.get_data(), strict=True)) for line in lines]


def bars(axes, at: int = 0) -> list[tuple[float, float]]:
    """The ends of the vertical bars of the n-th line."""
    segments = axes.containers[at].lines[2][0].get_segments()
    return [tuple(segment[:, 1]) for segment in segments]


def ticks(axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_xticklabels()]


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


ALL = ["table", "generations", "ensembles", "ablation", "reliability", "agreement", "gradient"]


def names(results: Results, folder) -> list[str]:
    return [name for name, _ in write_figures(results, folder)]


def test_a_full_table_has_every_picture_and_no_older_one(tmp_path):
    (tmp_path / "ablation-gone.png").write_text("old")
    (tmp_path / "notes.png").write_text("mine")
    found = names(table(), tmp_path)
    assert found == [f"{name}.png" for name in ALL]
    assert {path.name for path in tmp_path.iterdir()} == {*found, "notes.png"}
    for name in found:
        with Image.open(tmp_path / name) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_rows_share_the_pictures_of_lines_and_have_the_others_to_themselves(tmp_path):
    found = names(table(("a", "b")), tmp_path)
    own = [f"{name}-{row}.png" for name in ALL[3:] for row in "ab"]
    assert found == [f"{name}.png" for name in ALL[:3]] + own


def test_a_text_has_no_pictures_of_classes(tmp_path):
    found = names(table(is_text=True), tmp_path)
    assert not {"reliability.png", "agreement.png"} & set(found)
    assert "generations.png" in found


def test_a_family_has_its_picture_by_generation_and_what_else_it_has(tmp_path):
    found = names(small_family(), tmp_path)
    assert found == ["results.png", "results-ensembles.png", "results-agreement.png"]


def test_a_picture_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(figure, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_figures(table(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_family_by_generation_has_bars_controls_and_the_first_teacher():
    figure, caption = draw_overview(small_family(), ["family"])
    (axes,) = figure.axes
    assert close(drawn(axes)[0], [(0, 60.45), (1, 50.45), (2, 40.45)])
    spread = 0.3 / math.sqrt(2)
    assert close(bars(axes)[:1], [(60.45 - spread, 60.45 + spread)])
    assert [y for _, y in drawn(axes, "D")[0]] == pytest.approx([38.45])  # the ensemble
    assert [y for _, y in drawn(axes, "D")[1]] == pytest.approx([57.45])  # that of the controls
    assert [y for _, y in drawn(axes, "s")[0]] == pytest.approx([59.95])
    assert ticks(axes) == ["labels", "BAN-1", "BAN-2"]
    assert "Labels again" in legend(axes)
    assert "standard deviation over 2 seeds" in caption


@pytest.mark.parametrize("n", [359, 10_000])
def test_one_image_more_or_less_is_no_effect_to_the_eye(n):
    """With one seed bars are intervals over items, and the axis covers several of them."""
    errors = [100 * wrong / n for wrong in (25, 24, 25, 23)]
    records = [record(k, {"error": error}) for k, error in enumerate(errors)]
    for one in records:
        for metric in one["metrics"]:
            metric["n"] = n
    figure, caption = draw_overview(results_of_records(records), ["family"])
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    widest = max(end - start for start, end in bars(axes))
    assert high - low >= LEAST_BARS * widest * 0.999
    assert low >= 0
    assert (max(errors) - min(errors)) / (high - low) < 0.15
    assert "95 % interval over the test items" in caption


def test_without_a_known_spread_the_axis_covers_a_fifth_of_the_level():
    perplexities = (116.4, 112.3, 111.4)
    records = [record(k, {"perplexity": value}) for k, value in enumerate(perplexities)]
    figure, caption = draw_overview(results_of_records(records), ["family"])
    low, high = figure.axes[0].get_ylim()
    assert high - low > 0.19 * 111.4
    assert "Bars: none, since there is one seed" in caption


def test_the_best_possible_perplexity_is_drawn_where_it_is_near_and_else_told():
    records = [record(k, {"perplexity": 20.0 - k}) for k in range(3)]
    results = results_of_records(records)
    for entropy, is_near in ((2.75, True), (1.0, False)):
        known = replace(results, dataset=results.dataset | {"test_entropy": entropy})
        figure, _ = draw_overview(known, ["family"])
        said = f"{math.exp(entropy):.2f}"
        assert (f"Best possible: {said}" in legend(figure.axes[0])) == is_near
        note = figure.texts[1].get_text()
        assert (f"best possible: {said}" in note.replace("\n", " ")) != is_near


def test_a_later_generation_alone_is_drawn_and_nothing_is_refused(tmp_path):
    save_overview(results_of_records([record(3, {"error": 7.2})]), tmp_path / "one.png")
    nothing = results_of_records([record(0, {}), record(1, {"error": math.nan})])
    with pytest.raises(BANError, match=r"no test error of any generation.*test_dataset"):
        save_overview(nothing, tmp_path / "results.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_generations_are_means_with_bars_beside_the_papers():
    figure, caption = draw_generations(table(), ["a"])
    ours, paper = figure.axes
    assert close(drawn(ours)[0], [(0, 81), (1, 78.5), (2, 77.5)])
    assert close(drawn(ours, ".")[0], [(0, 80), (0, 82)])  # single seeds, faint
    assert close(drawn(paper)[0], [(0, 17.69), (1, 16.62), (2, 16.44)])
    assert close(bars(ours)[:1], [(81 - math.sqrt(2), 81 + math.sqrt(2))])
    levels = [line.get_ydata()[0] for line in ours.lines if line.get_linestyle() == "--"]
    assert levels == [81]
    assert ticks(ours) == ["Teacher", "BAN-1", "BAN-2"]
    assert caption.endswith("Right: the paper's single runs, on their own axis.")
    spans = [axes.get_ylim()[1] - axes.get_ylim()[0] for axes in (ours, paper)]
    assert spans[1] >= spans[0] * 0.999  # no difference of the paper's is larger than ours


def test_rows_below_one_another_have_equal_spans():
    def quarter(entry: Entry) -> Entry:
        test = entry.test | {"error": entry.test["error"] / 4}
        return replace(entry, test=test) if entry.row == "b" else entry

    results = table(("a", "b"))
    results = replace(results, entries=tuple(map(quarter, results.entries)))
    axes = draw_generations(results, ["a", "b"])[0].axes
    a, b = (axes[k].get_ylim() for k in (0, 2))
    assert a[1] - a[0] == pytest.approx(b[1] - b[0])
    assert b[0] < 77.5 / 4 < 81 / 4 < b[1]


def test_ensembles_are_two_lines_by_size():
    figure, caption = draw_ensembles(table(), ["a"])
    ours, paper = figure.axes
    born, own = drawn(ours, "D")
    assert np.allclose([y for _, y in born], [78.5, 75.5])
    assert np.allclose([y for _, y in own], [81, 77])
    assert close(drawn(paper)[0], [(0, 16.62), (1, 15.39)])  # it has no label-trained ones
    assert ticks(ours) == ["1", "2"]
    assert legend(ours) == ["Born-again", "Label-trained"]
    assert "born-again and label-trained" in caption


def test_the_ablation_is_of_differences_within_a_seed():
    figure, _ = draw_ablation(table(), ["a"])
    (axes,) = figure.axes
    # -2 and -3: their spread, less than the teacher's own; then the paper's 16.62 - 17.69
    ours, paper = drawn(axes)
    assert close(ours, [(-2.5, 0), (-3.5, 1)])
    assert close(paper, [(-1.07, 0), (-1.25, 1)])
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert np.allclose(bar[:, 0], [-2.5 - math.sqrt(0.5), -2.5 + math.sqrt(0.5)])
    lost = table(without=lambda e: (e["column"], e["seed"]) == NO_TEACHER)
    (ours, _) = drawn(draw_ablation(lost, ["a"])[0].axes[0])
    assert close(ours, [(-2, 0), (-3, 1)])


def test_the_table_at_a_glance_has_a_line_for_each_column_of_the_paper():
    figure, _ = draw_table(table(("a", "b")), ["a", "b"])
    ours, paper = figure.axes
    found = dict(sorted((y, x) for line in drawn(ours) for x, y in line))
    theirs = dict(sorted((y, x) for line in drawn(paper) for x, y in line))
    assert [*found.values()] == [81, 78.5, 77.5, 75.5] * 2
    assert [*theirs.values()] == [*PAPER.values()] * 2
    assert [*found] == [*theirs]
    names = [tick.get_text() for tick in ours.get_yticklabels()]
    assert names == [text for row in "ab" for text in (f"Net {row}", *HEADINGS[:4])]
    colors = [to_hex(line.get_color()) for line in ours.lines if line.get_marker() == "o"]
    assert colors == [INK, BLUE.lower(), BLUE.lower(), ORANGE.lower()]


def test_without_the_papers_numbers_ours_stand_alone():
    results = table(paper={})
    for draw in (draw_table, draw_generations, draw_ensembles):
        figure, caption = draw(results, ["a"])
        assert len(figure.axes) == 1
        assert "the paper's single runs" not in caption
    assert draw_ablation(results, ["a"])[0].axes[0].get_legend() is None


def test_bins_are_pooled_by_their_images():
    def network(*bins) -> Entry:
        return Entry(row="a", column="c", seed=1, test={}, reliability=bins or None)

    first = network((10, 0.1, 0.2), (0, None, None), (30, 0.9, 0.5))
    second = network((30, 0.3, 0.6), (0, None, None), (0, None, None))
    pooled = pool_bins([first, second, network()])
    assert np.allclose(pooled, [(40, 0.25, 0.5), (30, 0.9, 0.5)])
    assert pool_bins([]) == []


def test_reliability_has_intervals_and_leaves_bins_of_few_images_faint():
    (axes,) = draw_reliability(table(), ["a"])[0].axes
    # (100 * 0.1 + 200 * 0.2) / 300; the bin of 2 of 302 images is more than 0.5 %
    assert close(drawn(axes)[0], [(100 * 50 / 300, 30), (90, 0)])
    low, high = wilson(0.3, 150)  # images of one network in the bin
    assert close(bars(axes)[:1], [(30 - 100 * low, 30 + 100 * high)])
    assert legend(axes)[0] == "Teacher: ECE 5.5 ± 0.7 %"
    data = table_data()
    for one in data["entries"]:
        for each in (one.get("reliability") or [])[1:2]:
            each[0] *= 10
    (axes,) = draw_reliability(table_of_version_1(data), ["a"])[0].axes
    assert close(drawn(axes)[0], [(100 * 50 / 300, 30)])
    assert close(drawn(axes)[1], [(90, 0)])
    assert axes.lines[-2].get_alpha() is None or axes.lines[1].get_alpha() != 1


def test_the_interval_of_a_share_is_wilsons():
    """Of 10 items of which none, one or all count: the ends that his formula gives."""
    for share, ends in ((0, (0, 0.2775)), (0.1, (0.0179, 0.4042)), (1, (0.7225, 1))):
        low, high = wilson(share, 10)
        assert (share - low, share + high) == pytest.approx(ends, abs=1e-3)


def test_agreement_within_a_seed_and_of_different_seeds():
    results = table()
    # teacher and ban-1: 3 of 4 and 2 of 4; teacher and ban-2: 2 and 2; ban-1 and ban-2: 3 and 4
    wanted = [[100, 62.5, 50], [62.5, 100, 87.5], [50, 87.5, 100]]
    mean, reach = agreement(results, "a", ["teacher", "ban-1", "ban-2"])
    assert np.allclose(mean, wanted)
    assert reach[0, 1] == pytest.approx(25 / math.sqrt(2))
    assert agreement_of_seeds(results, "a", "teacher") == 75
    figure, caption = draw_agreement(results, ["a"])
    numbers = [text.get_text().split("\n")[0] for text in figure.axes[0].texts]
    assert numbers == ["62.5", "50.0", "62.5", "87.5", "50.0", "87.5"]  # none on the diagonal
    assert "Teacher networks of different seeds agree on 75.0 %" in caption
    one = table(seeds=(1,))
    assert "different seeds" not in draw_agreement(one, ["a"])[1]
    items = agreement(one, "a", ["teacher", "ban-1"])[1][0, 1]
    assert items == pytest.approx(196 * math.sqrt(0.75 * 0.25 / 4))


def test_networks_of_no_common_seed_have_no_agreement():
    keep = (("teacher", 1), ("ban-1", 2), ("ban-2", 2))
    results = table(without=lambda e: (e["column"], e["seed"]) not in keep)
    matrix, _ = agreement(results, "a", ["teacher", "ban-1", "ban-2"])
    assert np.isnan(matrix[0, 1])
    assert matrix[1, 2] == 100


def test_the_gradient_is_a_mean_over_seeds_where_all_have_logged():
    label, dark = draw_gradient(table(), ["a"])[0].axes
    lines = [line for line in label.lines if line.get_linestyle() == "-"]
    assert len(lines) == 2  # students, no teacher
    assert close([*zip(*lines[0].get_data(), strict=True)], [(1, -0.15), (2, -0.15)])
    assert close([*zip(*dark.lines[0].get_data(), strict=True)], [(1, 0.3), (2, 0.3)])
    assert legend(dark) == ["BAN-1", "BAN-2"]
    assert "q_* - p_*" in label.get_ylabel()


@pytest.mark.parametrize("errors", [(20.0,), (0.0, 0.0, None), (17.0, 60.0, 0.1)])
def test_any_family_has_a_picture(errors, tmp_path):
    records = [record(k, {} if e is None else {"error": e}) for k, e in enumerate(errors)]
    save_overview(results_of_records(records), tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
