"""Windows of a text: their order, the words that follow, and each word counted once."""

import hashlib

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ban_hf import BANError
from ban_hf.data import IGNORED, TokenWindows


def text(n):
    return torch.arange(100, 100 + n)


def targets_of(windows):
    """The counted targets with the position in the text that each belongs to."""
    counted = []
    for item in windows:
        for word, target in zip(item["input_ids"], item["shift_labels"], strict=True):
            if target != IGNORED:
                assert target == word + 1  # the next word of text()
                counted.append(int(target) - 100)
    return counted


def test_layout_is_the_one_that_is_drawn():
    windows = TokenWindows(text(14), 2, window=3)
    assert len(windows) == 4
    batches = list(DataLoader(windows, batch_size=2))
    assert [batch["input_ids"].tolist() for batch in batches] == [
        [[100, 101, 102], [107, 108, 109]],
        [[103, 104, 105], [110, 111, 112]],
    ]
    assert [batch["shift_labels"].tolist() for batch in batches] == [
        [[101, 102, 103], [108, 109, 110]],
        [[104, 105, 106], [111, 112, 113]],
    ]
    for item in windows:
        assert torch.equal(item["labels"], item["input_ids"])
        assert item["input_ids"].dtype == item["shift_labels"].dtype == torch.int64
    assert windows.num_targets == 12


def test_last_window_is_short():
    windows = TokenWindows(text(17), 2, window=3)  # columns of 8 words: 7 inputs; word 16 left out
    assert [len(item["input_ids"]) for item in windows] == [3, 3, 3, 3, 1, 1]
    assert (windows[4]["input_ids"].tolist(), windows[5]["shift_labels"].tolist()) == ([106], [115])
    assert sorted(targets_of(windows)) == [*range(1, 8), *range(9, 16)]


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("warmup", [1, 3, 10])
def test_with_warmup_every_word_is_a_target_once(columns, window, warmup):
    for n in range(60, 60 + columns + 1):  # every remainder
        windows = TokenWindows(text(n), columns, window=window, warmup=warmup)
        assert sorted(targets_of(windows)) == list(range(1, n)), n
        assert windows.num_targets == n - 1


def test_warmup_words_come_right_before_the_column():
    windows = TokenWindows(text(24), 3, window=5, warmup=2)  # 23 targets: 2 + 3 * 7
    assert windows.input_ids.tolist() == [
        list(range(100, 109)),
        list(range(107, 116)),
        list(range(114, 123)),
    ]
    assert windows.targets[0].tolist() == list(range(101, 110))
    assert windows.targets[1].tolist() == [IGNORED, IGNORED, *range(110, 117)]
    assert windows.targets[2].tolist() == [IGNORED, IGNORED, *range(117, 124)]
    one = TokenWindows(text(24), 1, window=5, warmup=2)
    assert one.input_ids.tolist() == [list(range(100, 123))]


def test_bad_arguments_are_named():
    for tokens, arguments, message in (
        (torch.zeros(2, 3).long(), {}, r"word ids, not \(2, 3\)"),
        (torch.zeros(20), {}, "word ids"),
        (text(20), {"columns": 0}, "columns=0"),
        (text(20), {"window": 0}, "window=0"),
        (text(20), {"warmup": -1}, "warmup=-1"),
        (text(20), {"columns": 4}, r"20 words: too few for 4 columns of a window of 5"),
        (text(10), {"columns": 4, "warmup": 20}, "too few for 4 columns"),  # all of it is warm-up
    ):
        with pytest.raises(BANError, match=message):
            TokenWindows(tokens, **{"columns": 1, "window": 5} | arguments)
    windows = TokenWindows(text(24), 4, window=5)
    assert len(list(windows)) == len(windows) == 4
    with pytest.raises(IndexError):
        windows[-1]


def test_fingerprint_is_of_the_words_in_order():
    words = text(40)
    expected = hashlib.sha256(np.arange(100, 140, dtype="<i8").tobytes()).hexdigest()
    assert TokenWindows(words, 2, window=5).fingerprint == expected
    assert TokenWindows(words.int(), 4, window=3, warmup=2).fingerprint == expected
    assert TokenWindows(words.flip(0), 2, window=5).fingerprint != expected
