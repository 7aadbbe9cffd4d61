"""A family of language models from data to report: what `recipes/ban_ptb.py` runs."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, default_data_collator

from ban_hf.data import TextSplits
from ban_hf.data.text import WARM_UP, evaluation_columns
from ban_hf.data.windows import TokenWindows
from ban_hf.lineage import Lineage
from ban_hf.models import create_language_model
from ban_hf.plan import plan_families
from ban_hf.siblings import run_families
from ban_hf.training_args import BANTrainingArguments


def run_language_family(
    splits: TextSplits,
    args: BANTrainingArguments,
    *,
    model_name: str,
    model_args: dict[str, Any] | None = None,
    generations: int = 2,
    window: int = 35,
    control: bool = False,
    control_from: Sequence[str] = (),
    teacher: str | None = None,
    command: str = "",
    plan: bool = False,
) -> Lineage | None:
    """Train a teacher and `generations` students, measure them on the test text, and report.

    The text is read in order, in as many columns as a batch has items, and the hidden states of
    student and teacher go on from window to window. Perplexity is that of one pass over a text in
    which every word but the first counts once.

    Leaves under `args.output_dir` what `run_image_family` does, with perplexity for error; each
    generation holds its tokenizer. Where the entropy of the text is known, the report tells how far
    each generation is from the best possible perplexity.

    Args:
        splits: from `load_text`.
        args: of every generation; `objective` may name several, see `run_image_family`. Without
            labels (BAN, `label_weight=0`) a language model hardly trains: the paper's is BAN+L,
            `label_weight=1`.
        model_name: see `create_language_model`.
        model_args: of the network.
        generations: number of students.
        window: words that back-propagation through time goes back.
        control: whether to train as many label-trained networks as the ensemble has members.
        control_from: output directories of runs of other seeds, whose generations 0 are controls
            that cost nothing more.
        teacher: a generation to go on from, see `train_generations`.
        command: how the run was started, for the report.
        plan: whether to say what the run would take of time and disk, and train nothing.

    Returns:
        The family's records; None of several objectives, and of a plan.

    Raises:
        ValueError: where the training text is shorter than a window in every column.
    """
    if window < 1 or args.per_device_eval_batch_size < 1:
        raise ValueError(
            f"window={window} and per_device_eval_batch_size={args.per_device_eval_batch_size} "
            "must be at least 1."
        )
    args = copy.copy(args)
    # A batch is given whole, with the next words, which no model takes; and is small: none to pin.
    args.remove_unused_columns = args.dataloader_pin_memory = False
    columns = evaluation_columns(splits, args.eval_batch_size, window, args.world_size)
    args.per_device_eval_batch_size = columns // args.world_size
    name = Path(str(splits.source["id"])).name
    known = {"entropy": splits.entropy, "test_entropy": splits.test_entropy}
    run = plan_families if plan else run_families
    return run(
        _family(splits, args, model_name, model_args or {}, window),
        args,
        generations=generations,
        control=control,
        control_from=control_from,
        teacher=teacher,
        report={
            "title": f"{model_name} on {name}",
            "command": command,
            "dataset": splits.source
            | {"name": name, "train_words": len(splits.train), "window": window}
            | {key: value for key, value in known.items() if value is not None},
        },
    )


def _family(
    splits: TextSplits,
    args: BANTrainingArguments,
    model_name: str,
    model_args: dict[str, Any],
    window: int,
) -> dict[str, Any]:
    """What all calls of `train_generations` have in common."""
    given = {"name", "words", "vocab_size"} & model_args.keys()
    if given:
        raise ValueError(f"model_args: {', '.join(sorted(given))} come from elsewhere.")

    def model_init(generation: int) -> PreTrainedModel:
        try:
            return create_language_model(model_name, words=splits.words, **model_args)
        except TypeError as error:
            raise ValueError(f"model_args={model_args}: {error}") from error

    def windows(split: str, columns: int, **options: int) -> TokenWindows:
        try:
            return TokenWindows(getattr(splits, split), columns, window=window, **options)
        except ValueError as error:
            raise ValueError(f"{split} text: {error}") from error

    together = args.train_batch_size * args.world_size
    evaluation = {"columns": args.eval_batch_size * args.world_size, "warmup": WARM_UP * window}
    return {
        "model_init": model_init,
        "train_dataset": windows("train", together),
        "eval_dataset": windows("validation", **evaluation),
        "test_dataset": windows("test", **evaluation),
        "data_collator": default_data_collator,
        "processing_class": splits.tokenizer,
        "data": {"source": splits.source},
    }
