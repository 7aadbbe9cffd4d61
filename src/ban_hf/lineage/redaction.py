"""A record as others may read it: no path of this machine, only files that are published."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ban_hf.lineage.record import Record, sha256_of_json
from ban_hf.lineage.results import data_name


def for_others(record: Record, published: Iterable[str]) -> Record:
    """A record to publish, but for its teacher or members, who must be named by their commits.

    Args:
        record: as it was written beside the model.
        published: the files that go with it.
    """
    training = _without_paths(record.training, _is_of_a_machine)
    if "arguments" in training:
        training["arguments"] = _without_paths(training["arguments"], _has_separator)
        training["arguments_sha256"] = sha256_of_json(training["arguments"])
    data = _without_paths(record.data, _is_of_a_machine)
    if (source := data.get("source", data)).get("id"):
        source["id"] = data_name({"data": data})
    files = [file for file in record.files if file["path"] in published]
    return replace(record, data=data, training=training, files=files)


def _without_paths(value: Any, is_path: Callable[[str], bool]) -> Any:
    """Plain data, of every path in it only the last part."""
    if isinstance(value, dict):
        return {key: _without_paths(part, is_path) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part, is_path) for part in value]
    if isinstance(value, str) and is_path(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _is_of_a_machine(text: str) -> bool:
    """Whether a text is a path: absolute, of a home, from here, or one that is there."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    if absolute or text.startswith(("~", "./", "../", "file:")):
        return True
    return len(text) < 1000 and "/" in text and Path(text).exists()


def _has_separator(text: str) -> bool:
    """Of the arguments that decide what is learnt none has one but in a path."""
    return "/" in text or "\\" in text
