"""A family from training to report, of whatever kind: generations, controls, measurement."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ban_hf.data.description import describe_data
from ban_hf.errors import BANError
from ban_hf.jobs.evaluation import measure_family
from ban_hf.jobs.generation import generation_seed
from ban_hf.lineage.environment import architecture, canonical_arguments
from ban_hf.lineage.record import Lineage, Record
from ban_hf.reports.report import write_report
from ban_hf.sequence import train_generations
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.performance import sequence_arguments

CONTROL = "control"  # folder of the label-trained networks
CONTROL_SEEDS = 1_000_000  # beyond every generation's
#: Arguments in which a control may differ: it has no teacher, and another seed.
OF_STUDENTS = {"seed", "objective", "temperature", "teacher_weight", "label_weight", "world_size"}


def run_family(
    family: dict[str, Any],
    args: BANTrainingArguments,
    *,
    generations: int,
    control: bool,
    control_from: Sequence[str],
    teacher: str | None,
    report: dict[str, Any],
) -> Lineage:
    """Train a teacher and `generations` students, measure them on the test set, and report.

    With `args.push_to_hub` they are published, the ensemble after the report, which its card shows.

    Args:
        family: what all calls of `train_generations` have in common; its `test_dataset` is what
            the family is measured on.
        args: of every generation.
        generations: number of students.
        control: whether to train label-trained networks, as many, with generation 0, as the
            ensemble has members.
        control_from: output directories of runs of other seeds, whose generations 0 are controls.
        teacher: a generation to go on from, see `train_generations`.
        report: what `write_report` takes beside the measurement: `title`, `command`, `dataset`.
    """
    if teacher is not None and (control or control_from):
        raise BANError(
            "control and control_from compare with generation 0, which a family that goes on from "
            f"teacher={teacher!r} does not have: leave them out."
        )
    for folder in control_from:
        _check_control(Path(folder), args, family)
    members = max(2, generations) if control and generations else 1  # of the ensemble
    controls = [_alone(args, number) for number in range(1, members)]

    def measure() -> None:
        for alone in controls:
            train_generations(args=alone, generations=0, **family)
        if PartialState().is_main_process:
            folders = [alone.output_dir for alone in controls] + list(control_from)
            entropy = report["dataset"].get("test_entropy")
            results = measure_family(
                args.output_dir, family["test_dataset"], controls=folders, entropy=entropy
            )
            write_report(results | report, args.output_dir)
            print((Path(args.output_dir) / "results.md").read_text("utf-8"))
        PartialState().wait_for_everyone()

    return train_generations(
        args=args, generations=generations, teacher=teacher, report=measure, **family
    )


def _check_control(folder: Path, args: BANTrainingArguments, family: dict[str, Any]) -> None:
    """Hold that a folder's generation 0 is a control: as ours, but for the seed."""
    try:
        record = Record.read(folder / "generation-0")
    except OSError as error:
        raise BANError(f"control_from: {folder} holds no finished generation 0.") from error
    model = family["model_init"](0)
    network, ours = architecture(model), canonical_arguments(sequence_arguments(args, model))
    theirs = record.training["arguments"]
    other = [
        name
        for name in sorted(ours.keys() & theirs.keys() - OF_STUDENTS)
        if ours[name] != theirs[name]
    ]
    checks = {
        "has the same seed as this run": record.seed["family_seed"] == args.seed,
        "is another network": record.architecture != network,
        "was trained on other data": record.data["train"] != describe_data(family["train_dataset"]),
        f"was trained with another {', '.join(other)}": bool(other),
    }
    for reason, is_so in checks.items():
        if is_so:
            raise BANError(f"control_from: the generation 0 of {folder} {reason}.")


def _alone(args: BANTrainingArguments, number: int) -> BANTrainingArguments:
    """Arguments of the n-th label-trained network of another seed."""
    alone = copy.copy(args)
    alone.push_to_hub = False
    alone.output_dir = str(Path(args.output_dir) / CONTROL / str(number))
    alone.seed = generation_seed(args.seed, CONTROL_SEEDS + number)
    return alone
