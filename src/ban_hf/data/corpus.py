"""From a corpus' name to the text of its three splits: from files of text, or with `datasets`."""

import logging
import os
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError

from ban_hf.data.images import FILE_BUILDERS, load_splits, source_id
from ban_hf.errors import BANError, did_you_mean

logger = logging.getLogger(__name__)

HELD_OUT = 0.05
"""Share of the lines that validation and test each get, where there is one split only."""
BUILT_IN_TEXTS: dict[str, tuple[str, str | None, str | None]] = {  # id, config, revision
    "grammar": ("grammar", None, None),
    # The main revision of this one is a script, which `datasets` does not run.
    "ptb": ("ptb-text-only/ptb_text_only", None, "refs/convert/parquet"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-v1", None),
}
_SPLITS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}
_TEXT_FILES = (".txt", ".tokens", ".raw")


def read_corpus(
    name: str, config: str | None, revision: str | None, text_column: str | None
) -> tuple[dict[str, str], dict[str, str | None]]:
    """Text of the splits train, validation and test, each line ended; and where it came from.

    See :func:`ban_hf.data.load_text` for arguments and errors.
    """
    path, hub_id, known = Path(name), name, source_id(name)
    if name in BUILT_IN_TEXTS:  # a folder of that name in the working directory is something else
        path = Path(os.environ.get("BAN_HF_DATA") or os.devnull, name)
        hub_id, known_config, known_revision = BUILT_IN_TEXTS[name]
        known = hub_id
        if not path.is_dir():
            config, revision = config or known_config, revision or known_revision
    source = {"id": known, "config": config, "revision": revision}
    files = _text_files(path)
    if files:
        if text_column is not None:
            raise BANError(f"text_column={text_column!r}: a text file has no columns: leave it out")
        texts = {split: _read(file) for split, file in files.items()}
    else:
        data = _load(name, hub_id, path, config, revision)
        texts = {split: _join(part, split, text_column) for split, part in data.items()}
    if list(texts) == ["train"]:
        texts = _hold_out(texts["train"], name)
    lacking = [split for split in _SPLITS if split not in texts]
    if lacking:
        raise BANError(
            f"--dataset_name {name}: no {' and no '.join(lacking)} split; there is "
            f"{', '.join(texts)}. Needed are train, validation and test, or train alone, whose "
            "last lines are then held out."
        )
    for split, text in texts.items():
        if not text.strip():
            raise BANError(f"--dataset_name {name}: no words in the {split} split")
    return {split: texts[split] for split in _SPLITS}, source


def _text_files(path: Path) -> dict[str, Path]:
    """The text file of each split; none where `path` is, or holds, something for `datasets`."""
    if path.is_file():
        return {} if path.suffix in FILE_BUILDERS else {"train": path}
    if not path.is_dir():
        return {}
    files = sorted(file for file in path.iterdir() if file.suffix in _TEXT_FILES)
    ptb = {split: path / f"ptb.{names[0]}.txt" for split, names in _SPLITS.items()}
    if set(ptb.values()) <= set(files):  # there may be ptb.char.train.txt, too
        return ptb
    found = {s: [f for f in files if any(n in f.name for n in _SPLITS[s])] for s in _SPLITS}
    if not any(found.values()) and any(f.suffix in FILE_BUILDERS for f in path.rglob("*")):
        return {}
    for split, matches in found.items():
        if len(matches) != 1:
            raise BANError(
                f"--dataset_name {path}: {len(matches) or 'no'} text files of the {split} split. "
                f"Needed is one ({', '.join(_TEXT_FILES)}) with {' or '.join(_SPLITS[split])} in "
                f"its name; there is {', '.join(file.name for file in files) or 'none'}."
            )
    return {split: matches[0] for split, matches in found.items()}


def _read(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode().removeprefix("\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        raise BANError(
            f"{path}: not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}); convert it, for "
            "example with iconv"
        ) from error
    if not text.strip():
        raise BANError(f"{path}: no words in this file")
    return text if text.endswith("\n") else text + "\n"


def _load(
    name: str, hub_id: str, path: Path, config: str | None, revision: str | None
) -> dict[str, datasets.Dataset]:
    try:
        return load_splits(path, hub_id, config, revision)
    except (ConnectionError, FileNotFoundError, ValueError, DatasetGenerationError) as error:
        hint = "" if name in BUILT_IN_TEXTS else did_you_mean(name, BUILT_IN_TEXTS)
        raise BANError(
            f"--dataset_name {name} cannot be loaded ({error}).{hint} It "
            f"takes a built-in name ({', '.join(BUILT_IN_TEXTS)}), a local folder or file, or a "
            "Hub id. Without a network, grammar needs none, and a folder with ptb.train.txt, "
            "ptb.valid.txt and ptb.test.txt can be given, or as BAN_HF_DATA the folder above ptb/."
        ) from error


def _join(data: datasets.Dataset, split: str, column: str | None) -> str:
    """The rows as lines; a row's own line break at its end is not doubled."""
    strings = [
        name
        for name, feature in data.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    ]
    if column is None and len(strings) != 1:
        raise BANError(
            f"{len(strings) or 'no'} columns of strings {strings}: name one with text_column; the "
            f"columns are {', '.join(data.features)}"
        )
    column = strings[0] if column is None else column
    if column not in strings:
        raise BANError(
            f"text_column={column!r}: no such column of strings.{did_you_mean(column, strings)} "
            f"The columns are {', '.join(data.features)}"
        )
    rows = list(data[column])
    if None in rows:
        raise BANError(f"{split} row {rows.index(None)}: {column} is empty (null)")
    return "".join(row.removesuffix("\n") + "\n" for row in rows)


def _hold_out(text: str, name: str) -> dict[str, str]:
    """The first lines to train on, the next for validation, the last for test."""
    lines = text.split("\n")[:-1]
    count = max(1, round(HELD_OUT * len(lines)))
    if len(lines) <= 2 * count:
        raise BANError(f"--dataset_name {name}: {len(lines)} lines are too few for three splits")
    logger.warning("%s: one split; %d of %d lines held out, twice", name, count, len(lines))
    parts = {
        "train": lines[: -2 * count],
        "validation": lines[-2 * count : -count],
        "test": lines[-count:],
    }
    return {split: "".join(f"{line}\n" for line in part) for split, part in parts.items()}
