"""From a dataset's name to its splits and columns, with the library `datasets`."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets.exceptions import DatasetGenerationError

from ban_hf.errors import BANError, did_you_mean

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
FILE_BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
}


class BuiltIn(NamedTuple):
    """The Hub dataset of a built-in name."""

    hub_id: str
    config: str | None = None
    revision: str | None = None


Origin = dict[str, str | None]
"""`id`, `config` and `revision` of a dataset, as records have them."""


def locate(
    name: str, built_in: Mapping[str, BuiltIn], config: str | None, revision: str | None
) -> tuple[Path, Origin]:
    """The file or folder of a dataset, which may not exist, and its origin.

    A built-in one is taken from `$BAN_HF_DATA`, if it is there. Of a folder or file the id is its
    name alone: the path stays private, and the fingerprints tell what the files hold.
    """
    path = Path(name)
    known = path.resolve().name if path.exists() else name
    if name in built_in:  # not a folder of that name in the working directory
        path = Path(os.environ.get("BAN_HF_DATA") or os.devnull, name)
        known = built_in[name].hub_id
        if not path.is_dir():
            config = config or built_in[name].config
            revision = revision or built_in[name].revision
    return path, {"id": known, "config": config, "revision": revision}


def read_splits(
    name: str, path: Path, origin: Origin, built_in: Iterable[str], offline: str
) -> dict[str, datasets.Dataset]:
    """The splits in a file or folder, or else on the Hub; `dev` and the like are `validation`.

    An error lists the `built_in` names, and what can be given where there is no network.
    """
    try:
        if path.suffix in FILE_BUILDERS and path.is_file():
            data = datasets.load_dataset(FILE_BUILDERS[path.suffix], data_files=str(path))
        elif path.is_dir():
            data = datasets.load_dataset(str(path), origin["config"])
        else:
            data = datasets.load_dataset(
                origin["id"], origin["config"], revision=origin["revision"]
            )
    except (ConnectionError, FileNotFoundError, ValueError, DatasetGenerationError) as error:
        hint = "" if name in built_in else did_you_mean(name, built_in)
        raise BANError(
            f"--dataset_name {name} cannot be loaded ({error}).{hint} It takes a built-in name "
            f"({', '.join(built_in)}), a local folder, a file ({', '.join(FILE_BUILDERS)}; texts "
            f"also as plain text) or a Hub id. Without a network, {offline}"
        ) from error
    return {"validation" if s in VALIDATION_NAMES else s: part for s, part in data.items()}


def only_column(found: list[str], kind: str, argument: str, features: Mapping[str, Any]) -> str:
    """The one column of a kind; an error says which argument names it."""
    if len(found) != 1:
        raise BANError(
            f"{len(found) or 'no'} columns of {kind} {found}: name one with {argument}; the "
            f"columns are {', '.join(features)}"
        )
    return found[0]


def check_column(
    argument: str,
    name: str,
    features: Mapping[str, Any],
    kind: str,
    fits: Callable[[Any], bool] = lambda feature: True,
) -> None:
    """Raise unless a column is there, and its feature fits what it must hold."""
    if name not in features:
        raise BANError(
            f"{argument}={name!r}: no such column of {kind}.{did_you_mean(name, features)} "
            f"The columns are {', '.join(features)}"
        )
    if not fits(features[name]):
        raise BANError(f"{argument}={name!r} holds no {kind} but {features[name]}")
