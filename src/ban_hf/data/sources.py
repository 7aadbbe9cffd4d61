"""From a dataset's name to its splits, with the library `datasets`."""

from pathlib import Path

import datasets

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
FILE_BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
}


def source_id(name: str) -> str:
    """What records call a dataset: its Hub id, or the name alone of a folder or file.

    The path itself stays private; the fingerprints tell what the files hold.
    """
    return Path(name).resolve().name if Path(name).exists() else name


def read_splits(
    path: Path, hub_id: str, config: str | None, revision: str | None
) -> dict[str, datasets.Dataset]:
    """The splits of an existing file or folder, or else of a Hub dataset.

    A split with any of `VALIDATION_NAMES` is called `validation`.
    """
    if path.suffix in FILE_BUILDERS and path.is_file():
        data = datasets.load_dataset(FILE_BUILDERS[path.suffix], data_files=str(path))
    elif path.is_dir():
        data = datasets.load_dataset(str(path), config)
    else:
        data = datasets.load_dataset(hub_id, config, revision=revision)
    return {"validation" if s in VALIDATION_NAMES else s: part for s, part in data.items()}
