r"""Born-again language models: a teacher, k generations of students, and their ensemble.

Without arguments: three generations of a small LSTM on sentences of a built-in grammar, whose best
possible perplexity is known, about two minutes on two CPU cores, no download.

The real thing (Furlanello et al. 2018, Table 6), a file of recipes/configs each:

    accelerate launch recipes/ban_ptb.py recipes/configs/ptb_lstm_1500.yaml

Flags override the file's values; any argument of BANTrainingArguments is a flag:

    accelerate launch recipes/ban_ptb.py recipes/configs/ptb_cpu.yaml \
        --dataset_name path/to/ptb --seed 1 --control

A Hub id, a local folder or a text file will do as --dataset_name. Students learn from labels and
teacher (BAN+L); --label_weight 0 leaves the labels out (BAN), with which, in the paper, a language
model does not learn. A run that was killed goes on where it stopped when the same command is given
again. With --plan nothing is trained: it says how long the run will take and what disk it needs.

Several objectives are students of one teacher, trained once; each has a folder of its own, and one
table and picture show them all. BAN beside BAN+L:

    accelerate launch recipes/ban_ptb.py --objective kd,kd+label --label_weight 0

With --push_to_hub --hub_model_id ns/family each generation is published as soon as it is finished,
the ensemble last. --teacher ns/family-gen2@commit goes on from somebody's generation, --teacher
runs/family/generation-2 from one of yours.
"""

from dataclasses import dataclass, field
from pathlib import Path

import ban_hf
from ban_hf import BANTrainingArguments, FamilyArguments

QUICKSTART = Path(__file__).parent / "configs" / "grammar.yaml"
REAL = "accelerate launch recipes/ban_ptb.py recipes/configs/ptb_lstm_1500.yaml"


@dataclass
class LanguageArguments:
    """What is trained, and on what."""

    dataset_name: str = field(
        default="grammar",
        metadata={"help": "ptb, wikitext2, grammar, a Hub id, a local folder, or a text file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Of a Hub dataset."})
    text_column: str | None = field(default=None, metadata={"help": "By default by its type."})
    vocabulary_size: int | None = field(
        default=None, metadata={"help": "Keep the most frequent words. Default: all."}
    )
    train_words: int | None = field(
        default=None, metadata={"help": "Train on this many of the first words. Default: all."}
    )
    model_name: str = field(
        default="lstm_200",
        metadata={"help": "lstm_200, lstm_650, lstm_1500, char_cnn_lstm_small or _large."},
    )
    window: int = field(
        default=35, metadata={"help": "Words that back-propagation through time goes back."}
    )


def shrink(language: LanguageArguments, args: BANTrainingArguments) -> None:
    """A few steps a generation, on 60 words of the grammar."""
    language.dataset_name, language.dataset_config = "grammar", None
    language.text_column = language.vocabulary_size = None
    language.train_words, language.window = 60, 5
    args.per_device_train_batch_size, args.per_device_eval_batch_size = 4, 200


def main(argv: list[str]) -> None:
    """Train, measure, report."""
    language, family, args = ban_hf.parse_recipe(
        (LanguageArguments, FamilyArguments, BANTrainingArguments),
        argv,
        quickstart=QUICKSTART,
        description=__doc__,
    )
    if family.smoke:
        shrink(language, args)
        family.network_args["hidden_size"] = 8
    what = f"{language.model_name} on {language.dataset_name}"
    ban_hf.begin_recipe(what, family, args, argv, real=REAL)
    splits = ban_hf.load_text(
        language.dataset_name,
        config=language.dataset_config,
        text_column=language.text_column,
        vocabulary_size=language.vocabulary_size,
        train_words=language.train_words,
    )
    ban_hf.run_language_family(
        splits,
        args,
        model_name=language.model_name,
        model_args=family.network_args,
        generations=family.generations,
        window=language.window,
        control=family.control,
        control_from=family.control_from,
        teacher=family.teacher,
        command=ban_hf.shareable_command("ban_ptb.py", argv, args.hub_token),
        plan=family.plan,
    )


if __name__ == "__main__":
    ban_hf.run_recipe(main)
