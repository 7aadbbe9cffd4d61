"""The report: the table's every cell, pooling over seeds, the picture as a file."""

import itertools
import json
import math
from pathlib import Path

import pytest
from ban_hf.reports.aggregate import aggregate, main
from matplotlib.figure import Figure
from PIL import Image

from ban_hf.lineage.family_results import is_measured, results_of, subtitle
from ban_hf.lineage.results import method_of
from ban_hf.reports.report import markdown_table, plot_generations, write_report

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
COMMITTED = [path.parent for path in sorted((ROOT / "results").glob("*/results.json"))]


def run(seed: int, errors=(20.0, 18.0, 17.0), *, control=15.5) -> dict:
    """Results of two students, their ensemble and a control."""
    return {
        "title": "A family on digits",
        "command": f"accelerate launch recipes/ban_cifar.py --seed {seed}",
        "hardware": "2 CPU cores",
        "seed": seed,
        "dataset": {"name": "digits"},
        "generations": [
            {
                "generation": k,
                "name": f"BAN-{k}" if k else "Generation 0 (labels)",
                "seed": 100 * seed + k,
                "test": {"error": error, "nll": (error or 0) / 10, "ece": 1.234, "n": 1000},
                "validation": {"error": 16.0 + k},
                "best_validation": {"error": 15.0 + k, "epoch": 7},
                "teacher_agreement": 90.0 + k if k else None,
                "train_loss": 0.5,
                "seconds": 60.4,
            }
            for k, error in enumerate(errors)
        ],
        "ensembles": [
            {"members": [1, 2], "name": "Ens*2", "test": {"error": 16.0, "nll": 1.0, "ece": 1.0}}
        ],
        "controls": [
            {
                "name": "label-trained again",
                "kind": "network",
                "size": 1,
                "test": {"error": 19.0, "nll": 2.0, "ece": None},
            },
            {
                "name": "2 label-trained",
                "kind": "ensemble",
                "size": 2,
                "test": {"error": control, "nll": 1.5, "ece": math.nan},
            },
        ],
        "versions": {"torch": "2.15.0"},
    }


def language_run(seed: int, perplexities=(21.0, 19.2, 18.7), *, entropy: float | None = 2.75):
    """Results of two language models, their ensemble and a control."""

    def test(perplexity: float) -> dict:
        nll = math.log(perplexity)
        known = {} if entropy is None else {"above_entropy": nll - entropy}
        return {"perplexity": perplexity, "nll": nll, "n": 19999} | known

    dataset = {"name": "grammar"} | ({} if entropy is None else {"test_entropy": entropy})
    return {
        "title": "lstm_200 on grammar",
        "command": f"accelerate launch recipes/ban_ptb.py --seed {seed}",
        "hardware": "2 CPU cores",
        "metric": "perplexity",
        "seed": seed,
        "dataset": dataset,
        "generations": [
            {
                "generation": k,
                "name": f"BAN-{k}" if k else "labels",
                "seed": 100 * seed + k,
                "test": test(perplexity),
                "validation": {"perplexity": perplexity + 1},
                "best_validation": {"perplexity": perplexity + 0.5, "epoch": 4.0},
                "train_loss": 2.5,
                "seconds": 31.2,
            }
            | ({"teacher_agreement": 80.0 + k} if k else {})
            for k, perplexity in enumerate(perplexities)
        ],
        "ensembles": [{"members": [1, 2], "name": "Ens*2 of generations 1-2", "test": test(18.1)}],
        "controls": [
            {
                "name": "labels again, network 2",
                "kind": "network",
                "size": 1,
                "test": test(20.7),
            },
            {
                "name": "Ens*2 of label-trained networks",
                "kind": "ensemble",
                "size": 2,
                "test": test(19.1),
            },
        ],
        "versions": {"torch": "2.15.0"},
    }


def record(generation: int | None, values: dict[str, float], **changes) -> dict:
    """What of a lineage record a table and a picture are made from; None is the ensemble."""
    objective = {"name": "kd", "teacher_weight": 1, "label_weight": 0, "temperature": 1}
    metrics = [{"name": k, "value": v, "split": "test", "n": 359} for k, v in values.items()]
    return {
        "kind": "ensemble" if generation is None else "generation",
        "family": "digits",
        "generation": generation,
        "members": [{"generation": 1}, {"generation": 2}] if generation is None else [],
        "objective": objective if generation else None,
        "seed": {} if generation is None else {"seed": 7, "family_seed": 42},
        "data": {"source": {"id": "somewhere/of/this/machine/digits"}},
        "training": {} if generation is None else {"hardware": "2 CPU cores", "seconds": 9.9},
        "metrics": metrics,
        "code": {"torch": "2.15.0"},
    } | changes


def texts_of_the_picture(results: dict, monkeypatch, folder: Path) -> str:
    """All that is written in the picture, a line each."""
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot_generations(results, folder / "results.png")
    axes = figures[-1].axes[0]
    texts = [text.get_text() for text in (*figures[-1].texts, *axes.texts)]
    ticks = " ".join(label.get_text() for label in axes.get_xticklabels())
    return "\n".join([*texts, f"ticks {ticks}", axes.get_ylabel()])


def test_the_table_of_one_run():
    assert markdown_table(run(1)) == "\n".join(
        [
            "| generation | test error % | NLL | ECE % | agreement with its teacher % |",
            "| --- | ---: | ---: | ---: | ---: |",
            "| Generation 0 (labels) | 20.00 | 2.000 | 1.23 | – |",
            "| BAN-1 | 18.00 | 1.800 | 1.23 | 91.00 |",
            "| BAN-2 | 17.00 | 1.700 | 1.23 | 92.00 |",
            "| Ens*2 | 16.00 | 1.000 | 1.00 | – |",
            "| label-trained again | 19.00 | 2.000 | – | – |",
            "| 2 label-trained | 15.50 | 1.500 | – | – |",
        ]
    )


def test_aggregation_keeps_the_table_and_adds_the_spread():
    pooled = aggregate([run(1, (20.0, 18.0, 17.0)), run(2, (22.0, 23.0, 17.0))])
    table = markdown_table(pooled).splitlines()
    assert len(table) == len(markdown_table(run(1)).splitlines())
    assert table[2].startswith("| Generation 0 (labels) | 21.00 ± 1.41 | 2.100 ± 0.141 |")
    assert table[6].endswith("| – | – |")
    assert pooled["seeds"] == [1, 2]
    assert pooled["generations"][1]["test"]["n"] == 1000


def test_differences_are_paired_by_seed():
    runs = [run(1, (20.0, 18.0, 17.0)), run(2, (22.0, 23.0, 17.0)), run(3, (20.0, 19.0, 20.0))]
    first, second, ensembles = aggregate(runs)["differences"]
    assert first["name"] == "BAN-1 minus Generation 0 (labels)"
    assert first["error"]["values"] == [-2.0, 1.0, -1.0]
    assert (first["error"]["negative"], first["error"]["positive"]) == (2, 1)
    assert first["error"]["mean"] == pytest.approx(-2 / 3)
    assert first["error"]["std"] == pytest.approx(math.sqrt(7 / 3))
    assert (second["error"]["negative"], second["error"]["positive"]) == (2, 0)
    assert ensembles["name"] == "Ens*2 minus 2 label-trained"
    assert ensembles["error"]["values"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_results_are_what_the_code_makes_of_their_seeds(folder, tmp_path):
    seeds = sorted(folder.glob("seed-*.json"))
    main([str(tmp_path), *map(str, seeds or [folder / "results.json"])])
    for name in ("results.json", "results.md"):
        assert (tmp_path / name).read_text("utf-8") == (folder / name).read_text("utf-8"), name


def test_the_document_of_a_language_model(tmp_path):
    runs = [language_run(1), language_run(2, (21.5, 19.1, 18.9))]
    write_report(aggregate(runs), tmp_path)
    expected = (GOLDEN / "language-results.md").read_text("utf-8")
    assert (tmp_path / "results.md").read_text("utf-8") == expected
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["metric"] == "perplexity"


def test_a_text_of_unknown_entropy_has_no_column_for_it():
    results = language_run(1, entropy=None)
    heading = "| generation | test perplexity | nats per word | agreement with its teacher % |"
    assert markdown_table(results).splitlines()[0] == heading


def test_perplexities_are_paired_by_seed():
    runs = [language_run(1), language_run(2, (21.5, 22.0, 18.0))]
    first, _, ensembles = aggregate(runs)["differences"]
    assert first["perplexity"]["values"] == pytest.approx([-1.8, 0.5])
    assert first["nll"]["mean"] == pytest.approx(math.log(19.2 * 22 / 21 / 21.5) / 2)
    assert (first["perplexity"]["negative"], first["nll"]["positive"]) == (1, 1)
    assert ensembles["perplexity"]["values"] == pytest.approx([-1.0, -1.0])


def test_the_picture_says_what_it_shows(tmp_path, monkeypatch):
    images = texts_of_the_picture(run(1), monkeypatch, tmp_path)
    assert "Test error (%)" in images
    assert "1,000 test items" in images
    assert "Best possible" not in images
    texts = texts_of_the_picture(language_run(1), monkeypatch, tmp_path)
    assert texts.endswith("\nTest perplexity")
    assert "19,999 test words" in texts
    assert "\nBest possible: 15.64" in texts


def test_what_is_far_off_the_scale_is_told_beside_the_picture(tmp_path, monkeypatch):
    texts = texts_of_the_picture(language_run(1, entropy=1.0), monkeypatch, tmp_path)
    assert "one seed (1) · best possible: 2.72" in texts
    assert "Best possible" not in texts
    alone = language_run(1, (21.0,)) | {"ensembles": [], "controls": []}
    assert "\nBest possible: 15.64" in texts_of_the_picture(alone, monkeypatch, tmp_path)


def test_records_alone_make_a_table():
    records = [
        record(0, {"loss": 0.2, "error": 5.85, "nll": 0.2}),
        record(1, {"loss": 0.3, "error": 6.13, "nll": 0.3, "teacher_agreement": 94.7}),
    ]
    results = results_of(records, record(None, {"error": 6.0}))
    assert markdown_table(results).splitlines()[2:] == [
        "| labels | 5.85 | 0.200 | – | – |",
        "| BAN-1 | 6.13 | 0.300 | – | 94.70 |",
        "| Ens*2 of generations 1, 2 | 6.00 | – | – | – |",
    ]
    assert subtitle(results) == "digits · 359 test items · one seed (42)"
    assert (results["hardware"], results["versions"]) == ("2 CPU cores", {"torch": "2.15.0"})
    with pytest.raises(ValueError, match="generations is empty"):
        results_of([])


def test_records_of_language_models_have_their_loss_as_nats_per_word():
    results = results_of([record(0, {"loss": 4.757, "perplexity": 116.4})])
    assert results["metric"] == "perplexity"
    assert markdown_table(results).splitlines()[2] == "| labels | 116.40 | 4.7570 | – |"


def test_records_whose_loss_is_all_that_was_measured():
    results = results_of([record(k, {"loss": 0.5 - k / 10}) for k in range(2)])
    heading = "| generation | test loss | agreement with its teacher % |"
    assert markdown_table(results).splitlines()[0] == heading


def test_the_methods_have_the_paper_s_names():
    names = [("kd", 0), ("kd", 1), ("cwtm", 0), ("dkpp", 0.5)]
    objectives = [{"name": name, "label_weight": weight} for name, weight in names]
    assert [*map(method_of, objectives)] == ["BAN", "BAN+L", "CWTM", "DKPP+L"]
    assert method_of(None) == "labels"


def test_a_family_that_goes_on_from_another_is_drawn_from_its_first(tmp_path, monkeypatch):
    pulled = record(2, {"error": 7.2}, seed={"seed": 3, "family_seed": 1}, family="theirs")
    own = [record(k, {"error": 7.0 - k / 10}, family="ours") for k in (3, 4)]
    texts = texts_of_the_picture(results_of([pulled, *own]), monkeypatch, tmp_path).splitlines()
    assert texts[:2] == [
        "Family ours",
        "digits · 359 test items · one run of each generation (seeds 1, 42)",
    ]
    assert "ticks 2 3 4" in texts
    assert "First teacher" in texts


def test_a_generation_alone_is_not_a_line_of_born_again_ones(tmp_path, monkeypatch):
    first = texts_of_the_picture(results_of([record(0, {"error": 7.2})]), monkeypatch, tmp_path)
    assert "Trained on labels" in first
    assert "(labels)" in first
    third = texts_of_the_picture(results_of([record(3, {"error": 7.2})]), monkeypatch, tmp_path)
    assert "\nBorn-again\n" in third
    for text in (first, third):
        assert "First teacher" not in text
        assert "generations" not in text


def test_without_measurements_there_is_no_picture(tmp_path):
    nothing = results_of([record(0, {}), record(1, {"error": math.nan})], record(None, {}))
    assert not is_measured(nothing)
    with pytest.raises(ValueError, match=r"no test error of any generation.*test_dataset"):
        plot_generations(nothing, tmp_path / "results.png")
    assert not list(tmp_path.iterdir())
    assert "| labels | – | – | – | – |" in markdown_table(nothing)
    some = results_of([record(0, {}), record(1, {"error": 5.0})])
    assert is_measured(some)
    plot_generations(some, tmp_path / "results.png")


@pytest.mark.parametrize("errors", [(60, 20, 18, 17), (17, 18, 20, 60), (60, 5, 50, 4), (5, 5, 5)])
def test_a_value_stands_clear_of_its_line(errors, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure))
    monkeypatch.setattr(Path, "replace", lambda *a: None)
    results = results_of([record(k, {"error": float(e)}) for k, e in enumerate(errors)])
    plot_generations(results, tmp_path / "results.png")
    axes = figures[-1].axes[0]
    figures[-1].draw_without_rendering()
    places = axes.transData.transform(list(enumerate(errors)))
    for text, place in zip(axes.texts, places, strict=False):
        assert text.get_text() == f"{errors[list(places[:, 0]).index(place[0])]:.2f}"
        assert not crosses(text.get_window_extent(), places)


def crosses(box, places) -> bool:
    """Whether a line through points passes through a box."""
    for (x, y), (to_x, to_y) in itertools.pairwise(places):
        steps = [i / 200 for i in range(201)]
        if any(box.contains(x + s * (to_x - x), y + s * (to_y - y)) for s in steps):
            return True
    return False


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="metric='bleu' of the results must be one of error, perp"):
        markdown_table(run(1) | {"metric": "bleu"})


def test_runs_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="by different metrics: error, perplexity"):
        aggregate([run(1), language_run(2) | {"dataset": {"name": "digits"}}])
    with pytest.raises(ValueError, match="comes twice"):
        aggregate([run(1), run(1)])
    with pytest.raises(ValueError, match="different data: digits, cifar10"):
        aggregate([run(1), run(2) | {"dataset": {"name": "cifar10"}}])
    with pytest.raises(ValueError, match="measured different things"):
        aggregate([run(1), run(2) | {"controls": []}])
    with pytest.raises(ValueError, match="aggregated already"):
        aggregate([run(1), aggregate([run(2), run(3)])])
    with pytest.raises(ValueError, match="empty"):
        aggregate([])


def test_a_report_is_three_files_and_no_left_over(tmp_path):
    write_report(run(1), tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["results.json", "results.md", "results.png"]
    text = (folder / "results.md").read_text("utf-8")
    assert markdown_table(run(1)) in text
    assert "accelerate launch recipes/ban_cifar.py --seed 1" in text
    assert "| BAN-1 | 0.500 | 17.00 | 16.00 | 7 | 60 |" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    "results",
    [
        run(1),
        aggregate([run(1), run(2, (21.0, 18.5, 17.5))]),
        run(1, (20.0,)) | {"ensembles": [], "controls": []},
        run(1, (0.0, 0.0, None)),
        language_run(1),
        language_run(1, (math.inf, 19.2, 18.7)),
    ],
    ids=[
        "one run",
        "aggregated",
        "generation 0 alone",
        "nothing wrong, one missing",
        "language",
        "an infinite perplexity",
    ],
)
def test_the_picture_is_fit_for_a_slide(results, tmp_path):
    plot_generations(results, tmp_path / "results.png")
    with Image.open(tmp_path / "results.png") as image:
        assert image.size == (1440, 810)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_the_command_aggregates(tmp_path, capsys):
    for seed in (1, 2):
        (tmp_path / f"{seed}.json").write_text(json.dumps(run(seed)))
    main([str(tmp_path / "out"), str(tmp_path / "1.json"), str(tmp_path / "2.json")])
    assert "2 seeds (1, 2)" in (tmp_path / "out" / "results.md").read_text("utf-8")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["seeds"] == [1, 2]
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_the_command_names_a_bad_file(tmp_path, capsys):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "other.json")])
    assert "other.json is not the results.json of a run" in capsys.readouterr().err
