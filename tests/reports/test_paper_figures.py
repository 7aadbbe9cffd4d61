"""The pictures of a table: which are drawn, and that what they show is what the numbers say."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from ban_hf.reports.dot_figures import draw_ablation, draw_table
from ban_hf.reports.figure_style import View
from ban_hf.reports.figures import draw_ensembles, draw_generations, write_figures
from ban_hf.reports.network_figures import (
    agreement,
    agreement_of_seeds,
    draw_agreement,
    draw_gradient,
    draw_reliability,
    pool_bins,
)
from ban_hf.reports.outcomes import pack_classes
from ban_hf.reports.plotting import BLUE, GREY, INK, ORANGE

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


def table(rows=("a",), *, is_text: bool = False, seeds=(1, 2)) -> dict:
    return {
        "title": "DenseNets on CIFAR-100",
        "metric": "perplexity" if is_text else "error",
        "budget": {"name": "cpu", "says": "3 of 200 epochs"},
        "columns": [
            {"name": n, "heading": h, "in_paper": n in PAPER, "ensemble": "ens" in n}
            for n, h in zip(NAMES, HEADINGS, strict=True)
        ],
        "rows": [{"name": r, "heading": f"Net {r}", "paper": dict(PAPER)} for r in rows],
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


def names(results: dict, folder) -> list[str]:
    return [name for name, _ in write_figures(results, folder)]


def texts(figure) -> list[str]:
    on_axes = [text.get_text() for axes in figure.axes for text in axes.texts]
    return on_axes + [text.get_text() for text in figure.texts]


def marked(axes) -> list:
    """What lines with a marker of its own go through, as pairs, in the order they are drawn."""
    lines = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    return [list(zip(*line.get_data(), strict=True)) for line in lines]


def close(pairs, wanted) -> bool:
    return len(pairs) == len(wanted) and np.allclose(pairs, wanted)


ALL = ["table", "generations", "ensembles", "ablation", "reliability", "agreement", "gradient"]


def test_a_full_table_has_every_picture_and_no_more_files(tmp_path):
    assert names(table(), tmp_path) == [f"{name}.png" for name in ALL]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.png" for name in ALL)
    for path in tmp_path.iterdir():
        assert Image.open(path).size[0] == 1440  # 9.6 inches at 150 dpi


def test_rows_share_the_pictures_of_lines_and_have_the_others_to_themselves(tmp_path):
    written = write_figures(table(("a", "b")), tmp_path)
    each = [f"{name}-{row}.png" for name in ALL[3:] for row in "ab"]
    assert [name for name, _ in written] == [f"{name}.png" for name in ALL[:3]] + each
    assert dict(written)["ablation-b.png"].startswith("Net b: ")
    many = names(table("abcde"), tmp_path)
    assert many[:6] == ["table.png", *(f"generations-{row}.png" for row in "abcde")]


def test_a_text_has_no_pictures_of_classes(tmp_path):
    written = names(table(is_text=True), tmp_path)
    assert written == [f"{n}.png" for n in ALL if n not in ("reliability", "agreement")]
    figure, caption = draw_generations(View(table(is_text=True)), ["a"])
    assert figure.axes[0].get_ylabel() == "Test perplexity"
    assert caption.startswith("Test perplexity by generation")


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("generations", {"generations", "reliability", "agreement"}),  # the gradient: any student
        ("ensembles", {"ensembles"}),
        ("ablation", {"ablation"}),
    ],
)
def test_without_its_columns_a_picture_is_not_drawn(gone, missing, tmp_path):
    results = table()
    del results["figures"][gone]
    assert names(results, tmp_path) == [f"{name}.png" for name in ALL if name not in missing]


def test_entries_that_are_missing_are_left_out(tmp_path):
    results = table(("a", "b"))
    assert names(results | {"entries": []}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    results["entries"] = [entry("a", "teacher", 1), entry("b", "ban-1", 2)]  # of different rows
    results["figures"]["generations"].append("ban-9")  # which the table does not have
    for row in results["rows"]:
        del row["paper"]
    wanted = ["table", "reliability-a", "reliability-b", "gradient-b"]
    assert names(results, tmp_path) == [f"{name}.png" for name in wanted]


def test_a_picture_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(figure, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_figures(table(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_generations_are_means_with_bars_beside_the_papers():
    figure, caption = draw_generations(View(table()), ["a"])
    ours, paper = figure.axes
    assert close(marked(ours)[0], [(0, 81), (1, 78.5), (2, 77.5)])
    assert close(marked(ours)[1], [(0, 80), (0, 82)])  # single seeds, faint
    assert close(marked(paper)[0], [(0, 17.69), (1, 16.62), (2, 16.44)])
    bars = ours.containers[0].lines[2][0].get_segments()
    assert np.allclose(bars[0], [(0, 81 - math.sqrt(2)), (0, 81 + math.sqrt(2))])
    assert {"81.00", "78.50", "77.50", "First teacher", "17.69", "16.62"} <= set(texts(figure))
    levels = [line.get_ydata()[0] for line in ours.lines if line.get_linestyle() == "--"]
    assert levels == [81]
    assert (paper.get_title(loc="left"), to_hex(paper.lines[0].get_color())) == ("The paper", GREY)
    assert [tick.get_text() for tick in ours.get_xticklabels()] == ["Teacher", "BAN-1", "BAN-2"]
    note = "DenseNets on CIFAR-100 · Net a · mean ± standard deviation over 2 seeds"
    assert f"{note} · 3 of 200 epochs" in texts(figure)
    assert caption.endswith("Right: the paper's values, on their own axis.")


def test_one_seed_has_no_bars_and_says_so():
    figure, caption = draw_generations(View(table(seeds=(1,))), ["a"])
    assert not figure.axes[0].containers[0].has_yerr
    assert "one seed" in caption


def test_rows_below_one_another_have_equal_spans():
    results = table(("a", "b"))
    for one in results["entries"]:
        if one["row"] == "b":
            one["test"]["error"] /= 4
    axes = draw_generations(View(results), ["a", "b"])[0].axes
    assert [a.get_title(loc="left") for a in axes] == ["Net a", "The paper", "Net b", "The paper"]
    a, b = (axes[k].get_ylim() for k in (0, 2))
    assert a[1] - a[0] == pytest.approx(b[1] - b[0])
    assert b[0] < 77.5 / 4 < 81 / 4 < b[1]


def test_ensembles_are_two_lines_by_size():
    figure, caption = draw_ensembles(View(table()), ["a"])
    ours, paper = figure.axes
    born, labels = (line for line in ours.lines if line.get_marker() == "D")
    assert np.allclose(born.get_ydata(), [78.5, 75.5])
    assert np.allclose(labels.get_ydata(), [81, 77])
    assert [to_hex(line.get_color()) for line in (born, labels)] == [ORANGE.lower(), GREY]
    assert np.allclose(list(born.get_xdata()), [0, 1], atol=0.1)
    assert close(marked(paper)[0], [(0, 16.62), (1, 15.39)])  # it has no label-trained ones
    assert [tick.get_text() for tick in ours.get_xticklabels()] == ["1", "2"]
    assert {"Born-again", "Label-trained"} <= set(texts(figure))
    assert "born-again and label-trained" in caption


def test_values_of_lines_that_cross_are_written_on_the_outside():
    results = table()
    for entry in results["entries"]:
        if entry["column"] == "ens2":
            entry["test"]["error"] += 4
    figure, _ = draw_ensembles(View(results), ["a"])
    written = {text.get_text(): text.xyann[1] > 0 for text in figure.axes[0].texts if text.xyann}
    outside = {"78.50": False, "81.00": True, "79.50": True, "77.00": False}
    assert {text: written[text] for text in outside} == outside


def test_the_ablation_is_of_differences_within_a_seed():
    figure, _ = draw_ablation(View(table()), ["a"])
    (axes,) = figure.axes
    # -2 and -3: their spread, less than the teacher's own; then the paper's 16.62 - 17.69
    assert close(marked(axes)[0], [(-2.5, 0)])
    assert np.allclose(marked(axes)[1][0][0], -1.07)
    assert np.allclose(marked(axes)[2], [(-3.5, 1)])
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert np.allclose(bar[:, 0], [-2.5 - math.sqrt(0.5), -2.5 + math.sqrt(0.5)])
    assert {"−2.50 ± 0.71", "−1.07", "−3.50 ± 0.71", "−1.25"} <= set(texts(figure))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["BAN-1", "BAN-2"]


def test_seeds_without_their_teacher_have_no_difference():
    results = table()
    results["entries"] = [e for e in results["entries"] if (e["column"], e["seed"]) != NO_TEACHER]
    figure, _ = draw_ablation(View(results), ["a"])
    assert {"−2.00", "−3.00"} <= set(texts(figure))


def test_bins_are_pooled_by_their_images():
    networks = [
        {"reliability": [[10, 0.1, 0.2], [0, None, None], [30, 0.9, 0.5]]},
        {"reliability": [[30, 0.3, 0.6], [0, None, None], [0, None, None]]},
        {"reliability": None},
        {},
    ]
    pooled = pool_bins(networks)
    assert np.allclose(pooled, [(40, 0.25, 0.5), (30, 0.9, 0.5)])
    assert pool_bins([]) == []


def test_reliability_leaves_bins_of_few_images_faint():
    figure, _ = draw_reliability(View(table()), ["a"])
    (axes,) = figure.axes
    # (100 * 0.1 + 200 * 0.2) / 300; the bin of 2 of 302 images is more than 0.5 %
    assert close(marked(axes)[0], [(100 * 50 / 300, 30), (90, 0)])
    results = table()
    for one in results["entries"]:
        for each in (one.get("reliability") or [])[1:2]:
            each[0] *= 10
    figure, _ = draw_reliability(View(results), ["a"])
    (axes,) = figure.axes
    assert close(marked(axes)[0], [(100 * 50 / 300, 30)])
    assert close(marked(axes)[1], [(90, 0)])
    assert axes.lines[1].get_alpha() < 0.5
    assert to_hex(axes.lines[0].get_color()) == INK
    assert "Teacher: ECE 5.5 ± 0.7 %" in texts(figure)


def test_agreement_within_a_seed_and_of_different_seeds():
    view = View(table())
    # teacher and ban-1: 3 of 4 and 2 of 4; teacher and ban-2: 2 and 2; ban-1 and ban-2: 3 and 4
    wanted = [[100, 62.5, 50], [62.5, 100, 87.5], [50, 87.5, 100]]
    assert np.allclose(agreement(view, "a", ["teacher", "ban-1", "ban-2"]), wanted)
    assert agreement_of_seeds(view, "a", "teacher") == 75
    figure, caption = draw_agreement(view, ["a"])
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert numbers == ["62.5", "50.0", "62.5", "87.5", "50.0", "87.5"]  # none on the diagonal
    assert "Teacher networks of different seeds agree on 75.0 %" in caption
    shown = figure.axes[0].images[0].get_array()
    assert shown[1, 2] == 87.5
    assert "different seeds" not in draw_agreement(View(table(seeds=(1,))), ["a"])[1]


def test_networks_of_no_common_seed_have_no_agreement():
    results = table()
    keep = (("teacher", 1), ("ban-1", 2), ("ban-2", 2))
    results["entries"] = [e for e in results["entries"] if (e["column"], e["seed"]) in keep]
    matrix = agreement(View(results), "a", ["teacher", "ban-1", "ban-2"])
    assert np.isnan(matrix[0, 1])
    assert matrix[1, 2] == 100
    numbers = [text.get_text() for text in draw_agreement(View(results), ["a"])[0].axes[0].texts]
    assert numbers == ["100.0", "100.0"]


def test_the_gradient_is_a_mean_over_seeds_where_all_have_logged():
    figure, _ = draw_gradient(View(table()), ["a"])
    label, dark = figure.axes
    assert len(marked(label)) == len(marked(dark)) == 2  # students, no teacher
    assert close(marked(label)[0], [(1, -0.15), (2, -0.15)])  # only one seed logged epoch 3
    assert close(marked(dark)[0], [(1, 0.3), (2, 0.3)])
    assert {"BAN-1", "BAN-2"} <= set(texts(figure))
    assert "q_* - p_*" in label.get_ylabel()


def test_the_table_at_a_glance_has_a_line_for_each_column_of_the_paper():
    figure, _ = draw_table(View(table(("a", "b"))), ["a", "b"])
    ours, paper = figure.axes
    dots = marked(ours)
    assert [dot[0][0] for dot in dots] == [81, 78.5, 77.5, 75.5] * 2
    assert [dot[0][0] for dot in marked(paper)] == list(PAPER.values()) * 2
    assert [dot[0][1] for dot in dots] == [dot[0][1] for dot in marked(paper)]
    ticks = [tick.get_text() for tick in ours.get_yticklabels()]
    assert ticks == [text for row in "ab" for text in (f"Net {row}", *HEADINGS[:4])]
    assert "2 on labels" not in ticks
    colours = [to_hex(line.get_color()) for line in ours.lines if line.get_marker() == "o"]
    assert colours[:4] == [INK, BLUE.lower(), BLUE.lower(), ORANGE.lower()]


def test_two_columns_share_a_line_written_on_the_outside():
    results = table(("a", "b"))
    results["columns"] = results["columns"][:2]
    results["rows"][1]["paper"] = {"teacher": 3.37, "ban-1": 3.54}
    figure, _ = draw_table(View(results), ["a", "b"])
    ours, paper = figure.axes
    assert [dot[0] for dot in marked(ours)] == [(81, 0), (78.5, 0), (81, 1), (78.5, 1)]
    sides = {text.get_text(): text.get_ha() for text in paper.texts}
    assert sides == {"17.69": "left", "16.62": "right", "3.37": "right", "3.54": "left"}
    assert any("○ Teacher · ● BAN-1" in text for text in texts(figure))


def test_without_the_papers_numbers_ours_stand_alone():
    results = table()
    results["rows"][0]["paper"] = {}
    for draw in (draw_table, draw_generations, draw_ensembles):
        figure, caption = draw(View(results), ["a"])
        assert len(figure.axes) == 1
        assert "the paper's values" not in caption
    assert "The paper" not in " ".join(texts(draw_ablation(View(results), ["a"])[0]))
