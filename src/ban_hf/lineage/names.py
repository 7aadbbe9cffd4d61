"""Names in words: of data, methods and generations."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

#: Characters that a name cannot hold, since it is written in Markdown and in one line.
MARKUP = "`|<>[]*\\"


def method_of(objective: Mapping[str, Any] | None) -> str:
    """How a generation learned, as the paper names it: labels, BAN, BAN+L, CWTM, DKPP, ..."""
    if not objective:
        return "labels"
    name = "BAN" if objective["name"] == "kd" else str(objective["name"]).upper()
    return f"{name}+L" if objective["label_weight"] else name


def counted(generations: Sequence[int]) -> str:
    """Numbers in words: `1`, `1 and 2`, `1 to 3`, `1, 3 and 4`."""
    *others, last = generations
    if len(others) > 1 and list(generations) == list(range(others[0], last + 1)):
        return f"{others[0]} to {last}"
    return f"{', '.join(map(str, others))} and {last}" if others else str(last)


def as_name(text: str) -> str:
    """A text as a name: `_` for what cannot stand in one."""
    kept = "".join("_" if c in MARKUP or not c.isprintable() else c for c in text[:200])
    return kept or "_"


def source_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a record's data came from: `id`, `config`, `revision`, as far as it is recorded."""
    source: Mapping[str, Any] | None = record["data"].get("source", record["data"])
    return source or {}


def data_name(record: Mapping[str, Any]) -> str | None:
    """A Hub id as it is; of a local path only the last part, which gives no machine away."""
    data_id = source_of(record).get("id")
    if not data_id:
        return None
    local = data_id.startswith(("/", ".", "~")) or data_id.count("/") > 1
    return as_name(PurePosixPath(data_id).name if local else data_id)
