"""Whether a record has the form of one: it may come from anybody, and is shown to others."""

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ban_hf.errors import BANError
from ban_hf.lineage.record import Record
from ban_hf.lineage.results import MARKUP, as_name

REFERENCE = {"generation", "lineage_sha256", "weights_sha256"}

Kinds = Mapping[str, Any]  # of a mapping's fields: a type, or a tuple of types
NUMBER, NONE = (int, float), type(None)
MAYBE_TEXT, MAYBE_NUMBER, MAYBE_DICT = (str, NONE), (*NUMBER, NONE), (dict, NONE)
FIELDS: Mapping[str, Kinds] = {
    "architecture": {"class": str, "model_type": str, "num_parameters": int},
    "seed": {"seed": MAYBE_NUMBER, "family_seed": MAYBE_NUMBER},
    "data": dict.fromkeys(("source", "train", "validation", "test"), MAYBE_DICT),
    "training": {"arguments": MAYBE_DICT, "hardware": MAYBE_TEXT, "seconds": MAYBE_NUMBER},
    "code": {},
}
TRAIN: Kinds = {"views": MAYBE_DICT, "items": MAYBE_NUMBER, "window": MAYBE_NUMBER}
SOURCE: Kinds = {"id": MAYBE_TEXT, "config": MAYBE_TEXT, "revision": MAYBE_TEXT}
OBJECTIVE: Kinds = {
    "name": str,
    **dict.fromkeys(("teacher_weight", "label_weight", "temperature"), NUMBER),
}
METRIC: Kinds = {"name": str, "split": str, "value": MAYBE_NUMBER, "n": MAYBE_NUMBER}


def check_form(record: Record) -> None:
    """Hold that all that we read of a record is there, and is what it should be.

    Raises:
        ValueError: naming what is not.
    """
    check_name("family", record.family)
    _check_kind(record)
    for name, kinds in FIELDS.items():
        _check_fields(name, getattr(record, name), kinds)
    if record.kind == "generation":
        _check_fields("seed", record.seed, {"seed": int})
    check_data(record.data)
    for name in ("class", "model_type"):
        check_name(f"architecture.{name}", record.architecture[name])
    if record.objective is not None:
        _check_fields("objective", record.objective, OBJECTIVE)
        check_name("objective.name", record.objective["name"])
    for reference in [*([record.teacher] if record.teacher else []), *record.members]:
        _check_reference(reference)
    for metric in record.metrics:
        _check_fields("metrics", metric, METRIC)
        check_name("metrics.name", metric["name"])
        check_name("metrics.split", metric["split"])
    if not all(map(_is_listed_well, record.files)):
        raise BANError("its files must have a path within it, a size and a sha256.")


def check_data(data: dict[str, Any]) -> None:
    """Hold that what is said of the data has the form that a record's `data` has.

    Raises:
        ValueError: naming what has not.
    """
    _check_fields("data", data, FIELDS["data"])
    _check_fields("data.source", data.get("source") or {}, SOURCE)
    _check_fields("data.train", data.get("train") or {}, TRAIN)


def check_name(what: str, name: str) -> None:
    """Hold that a name is one that can stand in a card.

    Raises:
        ValueError: naming the characters that cannot.
    """
    if name != as_name(name):
        raise BANError(
            f"{what}={name[:200]!r} must have 1 to 200 printable characters, and none of "
            f"{' '.join(MARKUP)}: give another name."
        )


def _check_kind(record: Record) -> None:
    is_generation = record.kind == "generation"
    lists = (record.members, record.metrics, record.files)
    problems = {
        "its members, metrics and files must be lists": not all(
            isinstance(part, list) for part in lists
        ),
        "its generation must be a number from 0": is_generation
        and not _is_count(record.generation),
        "generation 0 has no teacher, and every other has one": is_generation
        and (record.generation == 0) != (record.teacher is None),
        "an ensemble has members, and no generation or teacher": not is_generation
        and not (record.members and record.generation is None and record.teacher is None),
    }
    for problem, is_so in problems.items():
        if is_so:
            raise BANError(f"{problem}.")


def _check_fields(name: str, value: Any, kinds: Kinds) -> None:
    """Hold that a mapping has its fields, where they may be missing as None, of their types."""
    if not isinstance(value, dict):
        raise BANError(f"its {name} must be a mapping.")
    for field, kind in kinds.items():
        found = value.get(field)
        if not isinstance(found, kind) or isinstance(found, bool) or not _is_finite(found):
            raise BANError(f"its {name}.{field} is {str(found)[:50]!r}.")


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def _check_reference(reference: Any) -> None:
    if not isinstance(reference, dict) or not reference.keys() >= REFERENCE:
        raise BANError(f"a teacher or member must have {', '.join(sorted(REFERENCE))}.")
    names = [reference.get(name) for name in ("repo_id", "revision")]
    on_hub = all(isinstance(name, str) for name in names)
    if not _is_count(reference["generation"]) or not (
        on_hub or isinstance(reference.get("path"), str)
    ):
        raise BANError(
            "a teacher or member must have the number of a generation, and repo_id and revision "
            "(or, in a local folder, a path)."
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_listed_well(file: Any) -> bool:
    if not isinstance(file, dict) or not file.keys() >= {"path", "size", "sha256"}:
        return False
    path = file["path"]
    if not isinstance(path, str) or "\\" in path or ":" in path:
        return False
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and path not in ("", ".")
