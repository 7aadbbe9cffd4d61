r"""Born-again networks of five heads: a teacher, k generations of students, ensembles, a control.

Each run is small and from scratch, a minute or two for each network on one CPU core:

    accelerate launch recipes/ban_heads.py wnut17 --generations 2 --control

    wnut17        named entities of short messages, a tag for each word; a BERT of 2 layers
    qa            a question is a kind of entity, the answer its first span in the message; the same
    regression    by how much a digit is turned, in units of 90 degrees; a ViT of 3 layers
    segmentation  two squares with digits on a canvas, a class for each pixel; a Segformer
    seq2seq       put the vowels back into a word of Penn Treebank, byte by byte; a T5

The texts are in the folder that BAN_HF_DATA names, or in ../shared/data; the digits are
scikit-learn's. The splits are fixed, whatever the seed: validation is only logged, and the last
state of each network is measured once, on the test split. Any argument of BANTrainingArguments is a
flag; what no flag says is the run's own, see `RUNS`. A run that was killed continues when the same
command is given again.
"""

import argparse
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSemanticSegmentation,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    BertTokenizerFast,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    default_data_collator,
)

from ban_hf import BANError, BANTrainingArguments, Families, make_setup

DATA = Path(os.environ.get("BAN_HF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SPLITS = ("train", "eval", "test")
Rows = list[dict[str, Any]]
COMMON = (
    "--per_device_train_batch_size 32 --per_device_eval_batch_size 200 --eval_strategy epoch "
    "--logging_strategy epoch --save_strategy no --report_to none "
)


@dataclass
class HeadsArguments:
    """What is trained beside the run's own arguments."""

    generations: int = field(default=2, metadata={"help": "Number of students."})
    control: bool = field(default=False, metadata={"help": "Train label-trained networks, too."})
    rows: int | None = field(default=None, metadata={"help": "Take the first rows of each split."})


def parts(count: int, *sizes: int) -> list[np.ndarray]:
    """The numbers below `count` in a fixed order, in parts: the rest, then parts of the sizes."""
    order = np.random.default_rng(0).permutation(count)
    return np.split(order, np.cumsum([count - sum(sizes), *sizes])[:-1])


# Texts

WNUT17 = ("train", "validation")  # its files; the second is the test split here
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def messages() -> tuple[dict[str, Rows], list[str], BertTokenizerFast]:
    """WNUT17's training messages in three splits, its tags, and a tokenizer.

    A trained tokenizer would differ from one run to the next. This one knows the words that are
    written three times, and spells all others.
    """
    files = {name: str(DATA / "text" / "wnut17" / f"{name}.parquet") for name in WNUT17}
    known = datasets.load_dataset("parquet", data_files=files)
    train, test = (list(known[name]) for name in WNUT17)
    rest, held_out = ([train[i] for i in part] for part in parts(len(train), 340))
    found: dict[str, Rows] = {"test": test, "eval": held_out, "train": rest}
    seen: set[str] = set()
    for name, rows in found.items():  # several people write the same message
        found[name] = [row for row in rows if str(row["tokens"]) not in seen]
        seen |= {str(row["tokens"]) for row in rows}
    tags = known["train"].features["ner_tags"].feature.names
    counts = Counter(
        re.findall(r"\w+|[^\w\s]", " ".join(w for r in found["train"] for w in r["tokens"]))
    )
    letters = sorted({letter for word in counts for letter in word})
    words = sorted(word for word, count in counts.items() if count > 2 and len(word) > 1)
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return found, tags, BertTokenizerFast(vocab=vocabulary, do_lower_case=False)


def bert(tokenizer: BertTokenizerFast, **changes: Any) -> AutoConfig:
    """A BERT of 2 layers."""
    size = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    size |= dict(vocab_size=len(tokenizer), attention_probs_dropout_prob=0.0)
    return AutoConfig.for_model("bert", **size, **changes)


def wnut17() -> dict[str, Any]:
    """A tag for the first piece of each word."""
    found, tags, tokenizer = messages()

    def tagged(row: dict[str, Any]) -> dict[str, Any]:
        inputs = tokenizer(row["tokens"], is_split_into_words=True)
        words, labels = inputs.word_ids(), []
        for before, word in zip([None, *words], words, strict=False):
            labels.append(-100 if word in (None, before) else row["ner_tags"][word])
        return {**inputs, "labels": labels}

    names = {"id2label": dict(enumerate(tags)), "label2id": {t: i for i, t in enumerate(tags)}}
    return {
        "model": (AutoModelForTokenClassification, bert(tokenizer, **names)),
        **{name: [tagged(row) for row in rows] for name, rows in found.items()},
        "data_collator": DataCollatorForTokenClassification(tokenizer),
        "processing_class": tokenizer,
    }


def qa() -> dict[str, Any]:
    """The first and the last piece of the first entity of a kind, for each kind in a message."""
    found, tags, tokenizer = messages()

    def asked(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        names = [tags[number] for number in row["ner_tags"]]
        for kind in sorted({name[2:] for name in names if name.startswith("B-")}):
            start = end = names.index(f"B-{kind}")
            while names[end + 1 : end + 2] == [f"I-{kind}"]:
                end += 1
            inputs = tokenizer(kind.split("-"), row["tokens"], is_split_into_words=True)
            of_text = zip(inputs.sequence_ids(), inputs.word_ids(), strict=True)
            at = [word if part == 1 else None for part, word in of_text]
            last = len(at) - 1 - at[::-1].index(end)
            yield {**inputs, "start_positions": at.index(start), "end_positions": last}

    return {
        "model": (AutoModelForQuestionAnswering, bert(tokenizer)),
        **{name: [*chain.from_iterable(map(asked, rows))] for name, rows in found.items()},
        "data_collator": DataCollatorWithPadding(tokenizer),
        "processing_class": tokenizer,
    }


def seq2seq() -> dict[str, Any]:
    """A word of Penn Treebank from its consonants; each word is in one split."""
    tokenizer, vowels = ByT5Tokenizer(extra_ids=0), str.maketrans("", "", "aeiou")
    known = {*(DATA / "ptb" / "ptb.train.txt").read_text("utf-8").split()}
    words = np.array(sorted(word for word in known if word.isalpha() and len(word) > 3))

    def pair(word: str) -> dict[str, Any]:
        return {**tokenizer(word.translate(vowels)), "labels": tokenizer(word).input_ids}

    size = dict(d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2, num_decoder_layers=2)
    ends = dict(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    config = AutoConfig.for_model("t5", vocab_size=len(tokenizer), **size, **ends)
    splits = zip(SPLITS, parts(len(words), 300, 1000), strict=True)
    return {
        "model": (AutoModelForSeq2SeqLM, config),
        **{name: [pair(str(word)) for word in words[chosen]] for name, chosen in splits},
        "data_collator": DataCollatorForSeq2Seq(tokenizer),
        "processing_class": tokenizer,
    }


# Images


def digits() -> dict[str, np.ndarray]:
    """Scikit-learn's digits in three splits: images of 16 x 16 from 0 to 1, and their classes."""
    known = load_digits()
    images = known.images.repeat(2, 1).repeat(2, 2) / 16
    split = zip(SPLITS, parts(len(images), 200, 400), strict=True)
    return {name: (images[chosen], known.target[chosen]) for name, chosen in split}


def regression() -> dict[str, Any]:
    """Each digit turned by three angles, drawn evenly from -60 to 60 degrees."""

    def turned(seed: int, images: np.ndarray) -> Rows:
        angles = np.random.default_rng(seed).uniform(-60, 60, (3, len(images)))
        return [
            row(rotate(image, angle, reshape=False, order=1), angle / 90)
            for of_round in angles
            for image, angle in zip(images, of_round, strict=True)
        ]

    size = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
    images = dict(image_size=16, patch_size=4, num_channels=1)
    known = dict(num_labels=1, problem_type="regression")
    config = AutoConfig.for_model("vit", **size, **images, **known)
    return {
        "model": (AutoModelForImageClassification, config),
        **{name: turned(k, split[0]) for k, (name, split) in enumerate(digits().items())},
        "data_collator": default_data_collator,
    }


def segmentation() -> dict[str, Any]:
    """Squares with a digit on a noisy canvas of 32 x 32, two each; the later one is in front."""

    def canvases(seed: int, images: np.ndarray, classes: np.ndarray) -> Rows:
        rng, rows = np.random.default_rng(seed), []
        for _ in range(3 * len(images)):
            canvas, labels = rng.normal(0, 0.15, (32, 32)), np.zeros((32, 32), int)
            for one in rng.integers(len(images), size=2):
                top, left = 8 * rng.integers(3, size=2)
                square = slice(top, top + 16), slice(left, left + 16)
                canvas[square], labels[square] = images[one], classes[one] + 1
            rows.append(row(canvas, labels))
        return rows

    size = dict(num_encoder_blocks=2, depths=[1, 2], sr_ratios=[1, 1], hidden_sizes=[32, 64])
    size |= dict(patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2])
    names = {0: "background"} | {1 + digit: str(digit) for digit in range(10)}
    known = dict(num_channels=1, decoder_hidden_size=64, drop_path_rate=0.0, id2label=names)
    known |= dict(hidden_dropout_prob=0.0, classifier_dropout_prob=0.0)
    known["label2id"] = {name: number for number, name in names.items()}
    return {
        "model": (
            AutoModelForSemanticSegmentation,
            AutoConfig.for_model("segformer", **size, **known),
        ),
        **{name: canvases(k, *split) for k, (name, split) in enumerate(digits().items())},
        "data_collator": default_data_collator,
    }


def row(image: np.ndarray, label: float | np.ndarray) -> dict[str, Any]:
    """A gray image with its number, or its class of each pixel."""
    pixels = torch.tensor(image[None], dtype=torch.float32)  # (1, H, W)
    return {"pixel_values": pixels, "labels": torch.tensor(label)}


# Runs

#: What a run is called in its report, its data and network, and its own arguments.
RUNS = {
    "wnut17": ("WNUT17, entities", wnut17, "--num_train_epochs 5 --learning_rate 2e-3"),
    "qa": ("WNUT17, answers", qa, "--num_train_epochs 8 --learning_rate 2e-3"),
    "regression": ("digits, turned", regression, "--num_train_epochs 4 --learning_rate 2e-3"),
    "segmentation": (
        "digits on a canvas",
        segmentation,
        "--num_train_epochs 4 --learning_rate 2e-3 --warmup_steps 50",
    ),
    "seq2seq": (
        "words without vowels",
        seq2seq,
        "--num_train_epochs 5 --learning_rate 3e-3 --per_device_train_batch_size 64",
    ),
}


def main(argv: list[str]) -> None:
    """Train, measure and report the run that a command line names."""
    kinds, form = (HeadsArguments, BANTrainingArguments), argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(kinds, description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("run", choices=RUNS)
    name = next((word for word in argv if word in RUNS), None)
    own = f"{COMMON} --output_dir runs/heads/{name} {RUNS[name][2]}" if name else ""
    family, args, _ = parser.parse_args_into_dataclasses([*own.split(), *argv])
    title, build, _ = RUNS[name]
    made = build()
    auto_class, config = made.pop("model")
    splits = {split: made.pop(split)[: family.rows] for split in SPLITS}
    setup = make_setup(
        lambda generation: auto_class.from_config(config),
        **{f"{split}_dataset": rows for split, rows in splits.items()},
        **made,
    )
    Families(
        setup,
        args,
        {args.objective: (args.objective, args.label_weight)},
        family.generations,
        control=family.control,
        title=f"{config.model_type} on {title}",
        dataset={"name": title, "train_samples": len(splits["train"])},
        command=shlex.join(["accelerate", "launch", "recipes/ban_heads.py", *argv]),
    ).run()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BANError as error:
        sys.exit(f"ban_heads.py: error: {error}")
