"""Students of one teacher by several objectives, one after another, and one report of them all.

The teacher is trained once, `teacher/`, and each objective has a family of its own that goes on
from it: `kd/`, `cwtm/` and so on. The students of a number have the same seed, so that they begin
with the same weights and are shown the same views in the same order, and differ in the objective
alone; what the teacher says of a view is kept for them all, in `teacher_cache/`.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ban_hf.errors import BANError
from ban_hf.jobs.family import run_family
from ban_hf.lineage.family_results import side_by_side
from ban_hf.lineage.record import RECORD, Lineage, check_folders
from ban_hf.lineage.results import Results, as_name
from ban_hf.reports.reading import read_results
from ban_hf.reports.report import write_report
from ban_hf.sequence import train_generations
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.teacher_cache import check_folder

TEACHER, CACHE = "teacher", "teacher_cache"  # folders beside those of the objectives


def run_families(
    family: dict[str, Any],
    args: BANTrainingArguments,
    *,
    generations: int,
    control: bool,
    control_from: Sequence[str],
    teacher: str | None,
    report: dict[str, Any],
) -> Lineage | None:
    """Train the family of an objective; or those of several, from one teacher, with one report.

    Called again it goes on where it stopped, and more objectives may be asked for later.

    Args:
        family: see `run_family`.
        args: see `run_family`; `objective` may name several: `kd,kd+label,cwtm,dkpp`.
        generations: number of students, of each objective.
        control: see `run_family`.
        control_from: see `run_family`.
        teacher: a generation to go on from, for all of them; by default one is trained.
        report: see `run_family`.

    Returns:
        The family's records; None of several objectives, which each have a folder.

    Raises:
        ValueError: before anything is trained, where several objectives are asked for with what
            belongs to one family; and see `train_generations`.
    """
    each = args.each_objective()
    if len(each) == 1:
        return run_family(
            family,
            args,
            generations=generations,
            control=control,
            control_from=control_from,
            teacher=teacher,
            report=report,
        )
    check_several(args, generations, has_controls=bool(control or control_from))
    base = Path(args.output_dir)
    if teacher is None:
        teacher = _train_teacher(family, args)
    for number, (name, own) in enumerate(each.items(), start=1):
        if PartialState().is_main_process:
            print(f"Objective {number} of {len(each)}: {name}, into {base / name}", flush=True)
        own.output_dir = str(base / name)
        own.teacher_cache = own.teacher_cache or str(base / CACHE)
        run_family(
            family | {"family": _family_name(base, name)},
            own,
            generations=generations,
            control=False,
            control_from=(),
            teacher=teacher,
            report=report | {"title": f"{report['title']}: {name}"},
        )
    if PartialState().is_main_process:
        families = [read_results([base / name / "results.json"]) for name in each]
        methods = {_method(results): results for results in families}
        write_report(side_by_side(methods, report["title"], report["command"]), base)
        print((base / "results.md").read_text("utf-8"))
    PartialState().wait_for_everyone()
    return None


def _method(results: Results) -> str:
    """How the students of a family learned: `BAN+L` of `BAN+L-1`."""
    students = (column for column in results.columns if column.kind == "student")
    return [column.heading for column in students][-1].rpartition("-")[0]


def check_several(args: BANTrainingArguments, generations: int, *, has_controls: bool) -> None:
    """Hold that what is asked for can be had of several objectives."""
    several, base = f"objective={args.objective!r} makes several", Path(args.output_dir)
    if generations < 1:
        raise BANError(
            f"generations={generations}: {several} families, which differ in their students: ask "
            "for one at least."
        )
    if has_controls:
        raise BANError(
            f"control and control_from: {several} families, and controls are compared with the "
            "ensemble of one: give them with one objective, and an output_dir of its own."
        )
    if args.push_to_hub:
        raise BANError(
            f"push_to_hub: {several} families, and hub_model_id names one: leave it out, and push "
            f"the one that is wanted when it is finished: ban-hf push {base / 'OBJECTIVE'} ns/name."
        )
    if (base / RECORD).exists():
        raise BANError(
            f"output_dir={base} holds the family of one run; it stays as it is. {several}, with a "
            "folder for each: give another output_dir."
        )
    if args.teacher_cache is not None:
        check_folder(Path(args.teacher_cache), base, [TEACHER, *args.each_objective(), "results.*"])
    is_ours = any((base / name / RECORD).is_file() for name in [TEACHER, *args.each_objective()])
    check_folders(base, is_ours=is_ours)
    PartialState().wait_for_everyone()  # all have looked before one of them writes


def _train_teacher(family: dict[str, Any], args: BANTrainingArguments) -> str:
    """Train generation 0, whatever its students' objectives; its folder."""
    own = copy.copy(args)
    own.objective, own.label_weight, own.label_weight_is_default = "kd", 0.0, True
    base = Path(args.output_dir)
    own.output_dir = str(base / TEACHER)
    train_generations(args=own, generations=0, **family | {"family": _family_name(base, TEACHER)})
    return str(base / TEACHER / "generation-0")


def _family_name(base: Path, name: str) -> str | None:
    """What a family is called that begins; None for one that has a name, wherever it was begun."""
    begun = (base / name / RECORD).is_file()
    return None if begun else as_name(f"{base.resolve().name}-{name}")
