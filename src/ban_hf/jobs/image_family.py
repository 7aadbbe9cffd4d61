"""A family of image classifiers from data to report: what `recipes/ban_cifar.py` runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.data import ImageSplits
from ban_hf.jobs.plan import plan_families
from ban_hf.jobs.siblings import run_families
from ban_hf.lineage.family import Lineage
from ban_hf.tasks.data import image_task, ready_batches
from ban_hf.training.arguments import BANTrainingArguments


def run_image_family(
    splits: ImageSplits,
    args: BANTrainingArguments,
    *,
    model_name: str,
    model_args: dict[str, Any] | None = None,
    generations: int = 3,
    control: bool = False,
    control_from: Sequence[str] = (),
    teacher: str | None = None,
    command: str = "",
    plan: bool = False,
) -> Lineage | None:
    """Train a teacher and `generations` students, measure them on the test set, and report.

    Leaves under `args.output_dir`: the generations, the ensemble, `lineage.json`, `results.json`,
    `results.md` and `results.png`; with `control`, also `control/1`, `control/2` and so on,
    label-trained networks, so that with generation 0 there are as many as the ensemble has members.

    With several objectives, `args.objective="kd,kd+label,cwtm,dkpp"`, it leaves these of each in a
    folder of its name, `kd` and so on, all from one teacher, in `teacher`; what that says, which
    may be deleted when all are finished, in `teacher_cache`; and the results of them all.

    Args:
        splits: from `load_images`; moved to the device of `args`.
        args: of every generation; `objective` may name several.
        model_name: see `create_classifier`.
        model_args: of the network.
        generations: number of students.
        control: whether to train the controls.
        control_from: output directories of runs of other seeds, whose generations 0 are controls
            that cost nothing more.
        teacher: a generation to go on from, see `train_generations`.
        command: how the run was started, for the report.
        plan: whether to say what the run would take of time and disk, and train nothing.

    Returns:
        The family's records; None of several objectives, and of a plan.
    """
    args = ready_batches(args)
    name = Path(str(splits.source["id"])).name
    run = plan_families if plan else run_families
    return run(
        image_task(splits, args, model_name, model_args or {}),
        args,
        generations=generations,
        control=control,
        control_from=control_from,
        teacher=teacher,
        report={
            "title": f"{model_name} on {name}",
            "command": command,
            "dataset": splits.source | {"name": name, "train_samples": len(splits.train)},
        },
    )
