"""Two processes train the network that one process trains from the same batches."""

from pathlib import Path

import pytest
import torch
from heads import model_of
from launch import on_two_processes
from tiny import lstm, vit, weights
from train_on_ranks import CACHED, CASES, HEADS, READERS, main

SCRIPT = Path(__file__).parents[1] / "train_on_ranks.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, dict]:
    """What one and two processes come to, by their number."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_processes(str(SCRIPT), "2", str(folder))
    main(1, folder)
    return {n: torch.load(folder / f"world-{n}.pt") for n in (1, 2)}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_come_to_the_weights_of_one(case, results):
    one, two, fresh = results[1][case]["weights"], results[2][case]["weights"], weights(vit(1))
    assert max((one[k] - fresh[k]).abs().max() for k in one) > 1e-2
    assert max((one[k] - two[k]).abs().max() for k in one) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_two_processes_log_what_one_logs_in_training_and_evaluation(case, results):
    one, two = (results[n][case]["history"] for n in (1, 2))
    assert sum("teacher_loss" in line for line in one) == 5
    assert sum("eval_teacher_kl" in line for line in one) >= 2
    for line, expected in zip(two, one, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", READERS)
def test_two_processes_read_a_text_as_one_does(case, results):
    one, two = (results[n][f"LSTM, {case}"] for n in (1, 2))
    fresh = weights(lstm(1))
    assert max((one["weights"][k] - fresh[k]).abs().max() for k in fresh) > 5e-2
    assert max((one["weights"][k] - two["weights"][k]).abs().max() for k in fresh) < 1e-6
    assert sum("eval_perplexity" in line for line in one["history"]) == 2
    for line, expected in zip(two["history"], one["history"], strict=True):
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", HEADS, ids=lambda case: "-".join(map(str, case[1:])))
def test_two_processes_train_and_measure_every_head_as_one_does(case, results):
    one, two = (results[n][f"head {case[1:]}"] for n in (1, 2))
    fresh = weights(model_of(case, 1))
    moved = max((one["weights"][k] - fresh[k]).abs().max() for k in fresh)
    assert moved > 1e-4
    assert max((one["weights"][k] - two["weights"][k]).abs().max() for k in fresh) < 1e-4 * moved
    assert two["test"] == pytest.approx(one["test"], rel=1e-4, abs=1e-5)
    for name in ("eval_loss", "eval_teacher_kl"):
        assert two["evaluation"][name] == pytest.approx(one["evaluation"][name], rel=1e-4)


@pytest.mark.parametrize("make", CACHED)
@pytest.mark.parametrize("processes", [1, 2])
def test_students_of_a_cached_teacher_come_to_the_weights_of_an_asked_one(processes, make, results):
    online, *others = results[processes][f"cached {make.__name__}"].values()
    assert len(others) == 3
    for cached in others:
        assert all(torch.equal(cached[name], online[name]) for name in online)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_network_that_is_evaluated_is_the_one_that_rank_0_saves(processes, results):
    losses = results[processes]["BatchNorm"]
    assert losses["logged"] == pytest.approx(losses["saved"], rel=1e-5)


def test_two_processes_come_to_the_adapters_of_one(results):
    one, two = (results[n]["adapters"] for n in (1, 2))
    trained = [name for name in one if "lora_B" in name]  # which begins as 0
    assert max(one[name].abs().max() for name in trained) > 1e-3
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-6
