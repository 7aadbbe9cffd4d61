"""The report: the table's every cell, pooling over seeds, the picture as a file."""

import json
import math

import pytest
from PIL import Image

from ban_hf.aggregate import aggregate, main
from ban_hf.report import markdown_table, plot_generations, write_report


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


def test_runs_that_do_not_belong_together_are_refused():
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
    ],
    ids=["one run", "aggregated", "generation 0 alone", "nothing wrong, one missing"],
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
