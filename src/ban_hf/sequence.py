"""The sequence: generation 0 learns from labels, each further one from the one before it."""

import copy
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ban_hf.data.description import describe_data
from ban_hf.errors import BANError
from ban_hf.hub.publisher import Publisher
from ban_hf.jobs.run import Run
from ban_hf.lineage.record import Lineage, load_family
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.recurrence import check_windows


def train_generations(
    model_init: Callable[[int], PreTrainedModel],
    args: BANTrainingArguments,
    *,
    generations: int,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    test_dataset: Dataset | None = None,
    ensemble: bool = True,
    family: str | None = None,
    data: dict[str, Any] | None = None,
    teacher: str | None = None,
    report: Callable[[], None] | None = None,
    **trainer_kwargs: Any,
) -> Lineage:
    """Train generation 0 on labels, then `generations` students, each from the one before it.

    Writes `generation-0` ... `generation-k` under `args.output_dir`, each with its model and its
    `lineage.json`, `ensemble` (the mean of generations 1 to k, or of 0 and 1 where k is 1), and the
    family's `lineage.json`. Called again with the same arguments it continues where it stopped: a
    finished generation is not trained again, a killed one goes on from its last checkpoint. More
    generations may be asked for later.

    With `args.push_to_hub` each generation is published as soon as it is finished, to
    `<hub_model_id>-gen0` and so on, and at the end the ensemble to `hub_model_id`. A Hub that is
    away in between does not stop the training: what is missing is published at the end.

    Args:
        model_init: gives a fresh network for a generation; torch is seeded for it beforehand.
        args: of every generation. `seed` is the family's: each generation draws its own from it.
            Language models learn with labels, too, unless `label_weight` is given (BAN+L).
            With `load_best_model_at_end` a generation is its best checkpoint on `eval_dataset`,
            otherwise its last state, as in the paper.
        generations: number of students, k; 0 trains the label network alone.
        train_dataset: what all generations are trained on.
        eval_dataset: for validation while training; what a checkpoint may be chosen by.
        test_dataset: each generation is measured on it once, when it is finished.
        ensemble: whether to write the ensemble.
        family: name of the sequence; by default that of `hub_model_id`, or of the output directory,
            at the start.
        data: what the records say of the data (JSON), beside the fingerprints of `ImageViews`.
        teacher: a generation to go on from, on the Hub, `"ns/family-gen2@commit"`, or in a folder:
            it is copied to `generation-2`, one in a folder with those before it, and the students
            are generations 3 and so on. A copied folder need not stay where it was.
        report: called, on every process, when all is trained, before the ensemble is published:
            where it writes `results.json` (`write_report`), the family's card shows that.
        trainer_kwargs: for `BANTrainer`: `data_collator`, `compute_metrics`, `processing_class`,
            `callbacks` and so on.

    Returns:
        The family's records.

    Raises:
        ValueError: where `output_dir` holds a run of other arguments, data or model; the message
            names what differs.
        LineageError: where `teacher` is not what its record says.
        PublishError: where `hub_model_id` holds something else; before anything is trained.
        HubError: where the Hub cannot be reached, at the start or, with all trained, at the end.
        FloatingPointError: where a loss becomes NaN; the finished generations stay.
    """
    if generations < bool(teacher):
        raise BANError(
            f"generations={generations}: it counts the students, and must not be negative, nor 0 "
            "where there is a teacher."
        )
    args.check_one_objective()
    publisher, args = Publisher(args), copy.copy(args)
    args.push_to_hub = False  # the trainer's own way, which uploads pickles
    splits = {"train": train_dataset, "validation": eval_dataset, "test": test_dataset}
    described = {name: describe_data(d) for name, d in splits.items() if d is not None}
    run = Run(model_init, args, generations, family, (data or {}) | described, teacher)
    check_windows("test_dataset", test_dataset, args.eval_batch_size, args)
    run.open()
    here = range(run.first, run.last + 1)
    missing = [generation for generation in here if not run.finished(generation)]
    publisher.prepare(missing, run.first, run.teacher.name if run.teacher else None)
    trainer_kwargs |= {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    with run.alone():
        for generation in here:
            if not run.finished(generation):
                run.train(generation, test_dataset, trainer_kwargs)
            publisher.publish_generation(generation, run.folder(generation))
        first, *others = run.standing
        if ensemble and others:
            run.build_ensemble(ensemble_members(first, others[-1]), test_dataset, trainer_kwargs)
        run.close()
    if report is not None:
        report()
    publisher.publish_family(run.output_dir)
    return load_family(run.output_dir)


def ensemble_members(first: int, last: int) -> range:
    """The generations in the ensemble of a family: the students, or both where there is but one."""
    return range(first + 1, last + 1) if last > first + 1 else range(first, last + 1)
