"""A family of language models from data to report: what `recipes/ban_ptb.py` runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.data import TextSplits
from ban_hf.jobs.plan import plan_families
from ban_hf.jobs.siblings import run_families
from ban_hf.lineage.family import Lineage
from ban_hf.tasks.data import language_task, text_arguments
from ban_hf.training.arguments import BANTrainingArguments


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
    args = text_arguments(splits, args, window)
    name = Path(str(splits.source["id"])).name
    known = {"entropy": splits.entropy, "test_entropy": splits.test_entropy}
    run = plan_families if plan else run_families
    return run(
        language_task(splits, args, model_name, model_args or {}, window),
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
