"""Texts: how files are read, vocabularies, the tokenizer that reads alike, and clear errors."""

import json
import math

import datasets
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

from ban_hf import BANError
from ban_hf.data import load_text, word_tokenizer
from ban_hf.data.text import read_words, vocabulary

TRAIN = "the dog sees the cat\nthe cat sleeps\na <unk> sleeps\n"
VALID = "a dog sleeps\n"
TEST = "a bird sees the dog\nthe cat\n"


def write(folder, train=TRAIN, valid=VALID, test=TEST, pattern="ptb.{}.txt"):
    folder.mkdir(exist_ok=True)
    for name, text in (("train", train), ("valid", valid), ("test", test)):
        raw = text if isinstance(text, bytes) else text.encode()
        (folder / pattern.format(name)).write_bytes(raw)
    return str(folder)


def write_parquet(folder, split, **columns):
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def written(splits, split):
    return " ".join(splits.words[i] for i in getattr(splits, split))


# Reading


def test_lines_become_numbers(tmp_path):
    splits = load_text(write(tmp_path / "corpus"))
    # the 3, <eos> 3, cat 2, sleeps 2, then those that come once, each tie in alphabetical order
    assert splits.words == ["<eos>", "the", "cat", "sleeps", "<unk>", "a", "dog", "sees"]
    assert splits.train.tolist() == [1, 6, 7, 1, 2, 0, 1, 2, 3, 0, 5, 4, 3, 0]
    assert written(splits, "test") == "a <unk> sees the dog <eos> the cat <eos>"
    assert {part.dtype for part in (splits.train, splits.validation, splits.test)} == {torch.int64}
    assert (splits.entropy, splits.test_entropy) == (None, None)
    assert splits.source["id"] == "corpus"  # not where it lies
    assert splits.source["tokens"] == {"train": 14, "validation": 4, "test": 9}
    assert splits.source["vocabulary"] == 8
    assert json.loads(json.dumps(splits.source)) == splits.source


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a  b\n", "a b <eos>"),
        ("a\n \n\nb\n", "a <eos> <eos> <eos> b <eos>"),  # empty lines are lines
        ("a\r\nb", "a <eos> b <eos>"),  # the last line need not be ended
        (b"\xef\xbb\xbfa\n", "a <eos>"),  # a byte order mark is no part of the word
        ("a\u2028b\u00a0c\x0cd\x1ce\n", "a b c d e <eos>"),  # white space, but no line breaks
    ],
)
def test_lines_and_white_space(tmp_path, raw, expected):
    splits = load_text(write(tmp_path / "corpus", train="a b c d e\n", test=raw))
    assert written(splits, "test") == expected


def test_names_of_the_files(tmp_path):
    expected = load_text(write(tmp_path / "a")).source["words_sha256"]
    for i, pattern in enumerate(("wiki.{}.tokens", "{}.raw", "my-{}-text.txt")):
        folder = tmp_path / f"b{i}"
        write(folder, pattern=pattern)
        (folder / "README.txt").write_text("notes")
        assert load_text(str(folder)).source["words_sha256"] == expected
    (tmp_path / "b1" / "valid.raw").rename(tmp_path / "b1" / "validation.raw")
    write(tmp_path / "a", pattern="ptb.char.{}.txt", train="x y z\n")  # beside ptb.train.txt
    for folder in ("a", "b1"):
        assert load_text(str(tmp_path / folder)).source["words_sha256"] == expected


def test_vocabulary_is_capped_and_rest_unknown(tmp_path):
    folder = write(tmp_path / "corpus")
    splits = load_text(folder, vocabulary_size=5)
    assert splits.words == ["<unk>", "<eos>", "the", "cat", "sleeps"]  # <unk> stands for 5 words
    assert written(splits, "validation") == "<unk> <unk> sleeps <eos>"
    assert load_text(folder, vocabulary_size=100).words == load_text(folder).words
    assert load_text(folder, vocabulary_size=3).words == ["<unk>", "<eos>", "the"]
    assert vocabulary(["b", "a", "c", "c"]) == ["c", "a", "b", "<eos>", "<unk>"]
    with pytest.raises(BANError, match="vocabulary_size=2: must be at least 3"):
        load_text(folder, vocabulary_size=2)
    with pytest.raises(BANError, match=r"vocabulary_size=100.*left out for the grammar"):
        load_text("grammar", vocabulary_size=100)


def test_vocabulary_is_of_the_whole_training_split(tmp_path):
    folder = write(tmp_path / "corpus")
    whole, part = load_text(folder, train_words=14), load_text(folder, train_words=3)
    assert part.train.tolist() == whole.train[:3].tolist()
    assert (part.words, part.test.tolist()) == (whole.words, whole.test.tolist())
    assert (part.source["tokens"]["train"], len(whole.train)) == (3, 14)
    for size in (15, 0, -1):
        with pytest.raises(BANError, match=f"train_words={size}: must be"):
            load_text(folder, train_words=size)


def test_one_file_is_split_by_lines(tmp_path, caplog):
    file = tmp_path / "book.txt"
    file.write_text("".join(f"w{i} x\n" for i in range(60)))
    splits = load_text(str(file))
    assert "one split; 3 of 60 lines held out" in caplog.text
    assert splits.source["tokens"] == {"train": 54 * 3, "validation": 9, "test": 9}
    text = [read_words(line) for line in file.read_text().splitlines(keepends=True)]
    assert written(splits, "train") == " ".join(word for line in text[:54] for word in line)
    rows = write_parquet(tmp_path / "rows", "train", text=file.read_text().splitlines())
    again = load_text(rows)
    assert torch.equal(again.train, splits.train)
    file.write_text("one line\nand another\n")
    with pytest.raises(BANError, match="2 lines are too few"):
        load_text(str(file))


# The tokenizer


def test_tokenizer_reads_a_raw_text_as_the_corpus_was_read(tmp_path):
    odd = "the  dog<unk> <eos>cat\n\n \u00a0the\r\nsleeps\x1dcat \u2028 <unk> THE dog.\n"
    splits = load_text(write(tmp_path / "corpus", test=odd))
    tokenizer = splits.tokenizer
    for split, text in (("train", TRAIN), ("validation", VALID), ("test", odd)):
        assert tokenizer(text)["input_ids"] == getattr(splits, split).tolist()
    assert tokenizer("the dog")["input_ids"] == [splits.words.index(w) for w in ("the", "dog")]
    assert len(tokenizer) == tokenizer.vocab_size == len(splits.words)
    assert tokenizer.decode(splits.train[:8]) == " the dog sees the cat <eos> the cat"
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<eos>"
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded(odd)["input_ids"] == splits.test.tolist()
    assert loaded.decode(splits.train[:8]) == tokenizer.decode(splits.train[:8])
    eos, the, dog = (splits.words.index(word) for word in ("<eos>", "the", "dog"))
    for one in (tokenizer, loaded):
        batch = one(["the dog", "dog"], padding=True)
        assert batch["input_ids"] == [[the, dog], [eos, dog]]
        assert set(batch) == {"input_ids", "attention_mask"}


def test_tokenizer_in_a_pipeline():
    tokenizer = word_tokenizer(["<eos>", "<unk>", "the", "dog"])
    config = GPT2Config(
        vocab_size=4, bos_token_id=0, eos_token_id=0, n_layer=1, n_head=1, n_embd=4, n_positions=32
    )
    model = GPT2LMHeadModel(config)
    torch.nn.init.zeros_(model.transformer.wte.weight)  # all words alike: the first is taken
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["the dog", "the"]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    texts = generate(prompts, batch_size=2, skip_special_tokens=False, **options)
    assert [text[0]["generated_text"] for text in texts] == [
        "the dog <unk> <unk> <unk>",
        "the <unk> <unk> <unk>",
    ]


# What datasets loads


def test_rows_of_a_dataset_are_lines(tmp_path):
    expected = load_text(write(tmp_path / "corpus"))
    for split, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        lines = text.splitlines()
        write_parquet(tmp_path / "rows", split, sentence=lines, n=[1] * len(lines))
        write_parquet(tmp_path / "ended", split, text=[f"{line}\n" for line in lines])
        write_parquet(tmp_path / "whole", split, text=[text])
    for folder, column in (("rows", None), ("ended", None), ("whole", "text")):
        splits = load_text(str(tmp_path / folder), text_column=column)
        for split in ("train", "validation", "test"):
            assert torch.equal(getattr(splits, split), getattr(expected, split))


def test_bad_columns_and_rows_are_named(tmp_path):
    two = write_parquet(tmp_path / "two", "train", text=["a"], title=["b"], n=[1])
    none = write_parquet(tmp_path / "none", "train", n=[1])
    null = write_parquet(tmp_path / "null", "train", text=["a", None])
    for folder, column, message in (
        (two, None, r"2 columns of strings.*text_column.*text, title, n"),
        (two, "txt", r"text_column='txt'.*mean 'text'"),
        (two, "n", r"text_column='n': no such column of strings"),
        (none, None, "no columns of strings"),
        (null, None, "train row 1: text is empty"),
    ):
        with pytest.raises(BANError, match=message):
            load_text(folder, text_column=column)
    with pytest.raises(BANError, match="a text file has no columns"):
        load_text(write(tmp_path / "corpus"), text_column="text")


# Errors


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder = write(tmp_path / "latin", valid=b"\xef\xbb\xbfcaf\xe9 a\n")
    with pytest.raises(BANError, match=r"ptb.valid.txt: not UTF-8 at byte 6 \(0xe9\)"):
        load_text(folder)
    for i, text in enumerate(("", "\n \n", b"\xef\xbb\xbf")):
        with pytest.raises(BANError, match=r"ptb.test.txt: no words"):
            load_text(write(tmp_path / f"empty{i}", test=text))
    for split, lines in (("train", ["a"]), ("validation", ["", " "]), ("test", ["a"])):
        rows = write_parquet(tmp_path / "rows", split, text=lines)
    with pytest.raises(BANError, match="no words in the validation split"):
        load_text(rows)


def test_missing_and_ambiguous_splits_are_named(tmp_path):
    folder = write(tmp_path / "corpus")
    (tmp_path / "corpus" / "ptb.valid.txt").rename(tmp_path / "corpus" / "ptb.other.txt")
    with pytest.raises(BANError, match=r"corpus: no text files of the val.*dev.*ptb.other.txt"):
        load_text(folder)
    write(tmp_path / "two", pattern="a.{}.txt")
    folder = write(tmp_path / "two", pattern="b.{}.txt")
    with pytest.raises(BANError, match=r"2 text files of the train.*a.train.txt.*b.train"):
        load_text(folder)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BANError, match=r"nothing: no text files.*there is none"):
        load_text(str(tmp_path / "nothing"))
    write_parquet(tmp_path / "rows", "train", text=["a"])
    rows = write_parquet(tmp_path / "rows", "test", text=["a"])
    with pytest.raises(BANError, match="no validation split; there is train, test"):
        load_text(rows)


def test_unknown_names_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("BAN_HF_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ptb")  # as an output folder may be called: not the data
    with pytest.raises(BANError, match=r"--dataset_name ptb .*ptb_text_only.*BAN_HF_DATA"):
        load_text("ptb")
    with pytest.raises(BANError, match=r"--dataset_name wikitext-2.*mean 'wikitext2'"):
        load_text("wikitext-2")
    with pytest.raises(BANError, match=r"--dataset_name .*nowhere.txt.*ptb.train.txt"):
        load_text(str(tmp_path / "nowhere.txt"))
    monkeypatch.setenv("BAN_HF_DATA", str(tmp_path))
    source = load_text("ptb").source
    assert source["id"] == "ptb-text-only/ptb_text_only"
    assert str(tmp_path) not in json.dumps(source)


def test_hub_names_ask_for_the_right_dataset(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs))
        texts = {"train": TRAIN, "validation": VALID, "test": TEST}
        return {s: datasets.Dataset.from_dict({"sentence": [t]}) for s, t in texts.items()}

    monkeypatch.delenv("BAN_HF_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    ptb = load_text("ptb")
    assert (ptb.source["revision"], len(ptb.train)) == ("refs/convert/parquet", 14)
    load_text("wikitext2", revision="abc")
    load_text("someone/corpus", config="small")
    assert asked == [
        ("ptb-text-only/ptb_text_only", None, {"revision": "refs/convert/parquet"}),
        ("Salesforce/wikitext", "wikitext-2-v1", {"revision": "abc"}),
        ("someone/corpus", "small", {"revision": None}),
    ]


def test_line_ends_that_are_there_already_are_warned_of(tmp_path, caplog):
    load_text(write(tmp_path / "corpus"))
    assert not caplog.text
    load_text(write(tmp_path / "ended", valid="a dog <eos>\n"))
    assert "<eos> is in the validation text" in caplog.text


# Real data


def test_ptb(data_root):
    folder = data_root / "ptb"
    if not folder.is_dir():
        pytest.skip(f"no ptb in {data_root}: put it there or set BAN_HF_DATA")
    splits = load_text(str(folder))
    assert splits.source["tokens"] == {"train": 929_589, "validation": 73_760, "test": 82_430}
    assert len(splits.words) == len(set(splits.words)) == 10_000
    assert splits.words[:4] == ["the", "<unk>", "<eos>", "N"]
    raw = (folder / "ptb.test.txt").read_text()
    assert splits.tokenizer(raw)["input_ids"] == splits.test.tolist()
    share = splits.train.bincount(minlength=10_000).double() / len(splits.train)
    assert (share > 0).all()
    # The unigram perplexity, which is known of this text, shows that the counts are right.
    assert (splits.train == splits.words.index("<eos>")).sum() == 42_068
    assert math.exp(-share[splits.test].log().mean()) == pytest.approx(639.3, abs=0.1)
