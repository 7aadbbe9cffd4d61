"""Whether a record has the form of one. It may come from anybody."""

from pathlib import PurePosixPath
from typing import Any

from ban_hf.lineage import Record

REFERENCE = {"generation", "lineage_sha256", "weights_sha256"}
MAPPINGS = ("architecture", "seed", "data", "training", "code")


def check_form(record: Record) -> None:
    """Hold that all that we read of a record is there, and is what it should be.

    Raises:
        ValueError: naming what is not.
    """
    is_generation, is_ensemble = record.kind == "generation", record.kind == "ensemble"
    problems = {
        "its generation is no number from 0": is_generation and not _is_number(record.generation),
        "generation 0 has no teacher, and every other has one": is_generation
        and (record.generation == 0) != (record.teacher is None),
        "an ensemble has members and no teacher": is_ensemble
        and (not record.members or record.teacher is not None),
        "a list is something else": not all(
            isinstance(part, list) for part in (record.members, record.metrics, record.files)
        ),
        "its objective is no mapping": not isinstance(record.objective, dict | None),
        **{
            f"its {name} is no mapping": not isinstance(getattr(record, name), dict)
            for name in MAPPINGS
        },
    }
    for problem, is_so in problems.items():
        if is_so:
            raise ValueError(f"{problem}.")
    for reference in [*([record.teacher] if record.teacher else []), *record.members]:
        _check_reference(reference)
    _check_objective(record)
    if not all(map(_is_metric, record.metrics)):
        raise ValueError("a metric must have a name, a split and a number for its value.")
    if not all(map(_is_listed_well, record.files)):
        raise ValueError("its files must have a path within it, a size and a sha256.")


def _check_reference(reference: Any) -> None:
    if not isinstance(reference, dict) or not reference.keys() >= REFERENCE:
        raise ValueError(f"a teacher or member must have {', '.join(sorted(REFERENCE))}.")
    on_hub = isinstance(reference.get("repo_id"), str) and isinstance(
        reference.get("revision"), str
    )
    if not _is_number(reference["generation"]) or not (
        on_hub or isinstance(reference.get("path"), str)
    ):
        raise ValueError(
            "a teacher or member must have the number of a generation, and repo_id and revision "
            "(or, in a local folder, a path)."
        )


def _check_objective(record: Record) -> None:
    names = {"name": str, "teacher_weight": int | float, "label_weight": int | float}
    for name, kind in names.items():
        if record.objective is not None and not isinstance(record.objective.get(name), kind):
            raise ValueError(f"its objective has no {name}, or one of another kind.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_metric(metric: Any) -> bool:
    return (
        isinstance(metric, dict)
        and isinstance(metric.get("name"), str)
        and isinstance(metric.get("split"), str)
        and isinstance(metric.get("value"), int | float)
    )


def _is_listed_well(file: Any) -> bool:
    if not isinstance(file, dict) or not file.keys() >= {"path", "size", "sha256"}:
        return False
    path = file["path"]
    if not isinstance(path, str) or "\\" in path or ":" in path:
        return False
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and path not in ("", ".")
