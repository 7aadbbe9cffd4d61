"""Files: JSON that is written whole or not at all, digests that records name files by, room."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Set
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE

from ban_hf.errors import BANError

#: Of an adapter, as peft names them.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_CONFIG = "base_config.json"  # beside an adapter: its base's class, with the head and labels
#: The suffixes of what a model, its processor or its tokenizer is loaded from. No pickles.
LOADED = ".safetensors .json .txt .model .jinja .py .bpe .codes .spm .tiktoken .tokenizer".split()
SHOWN = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")  # cards and their pictures


def is_shown(name: str) -> bool:
    """Whether a file is for people or for git: no loader reads it, so no record lists it."""
    path = PurePosixPath(name)
    is_hidden = "/" not in name and name.startswith(".")
    return is_hidden or name in ("LICENSE", "LICENSE.txt") or path.suffix.lower() in SHOWN


def weight_files(names: Set[str], read: Callable[[str], dict[str, Any]]) -> set[str]:
    """The files that loaders take a model's weights from, among those of a folder or repository."""
    if SAFETENSORS_SINGLE_FILE not in names and SAFETENSORS_INDEX_FILE in names:
        return set((read(SAFETENSORS_INDEX_FILE).get("weight_map") or {}).values())
    return {SAFETENSORS_SINGLE_FILE}


def model_files(names: Set[str], read: Callable[[str], dict[str, Any]]) -> set[str]:
    """The files that decide a model: its config, its weights, and the index of these."""
    weights = weight_files(names, read)
    index = set() if SAFETENSORS_SINGLE_FILE in weights else {SAFETENSORS_INDEX_FILE}
    return {"config.json"} | weights | index


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(data: Any) -> str:
    """Hex digest of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(plain_json(data), sort_keys=True).encode()).hexdigest()


def plain_json(data: Any) -> Any:
    """Data as it reads back from a JSON file: keys are strings, tuples are lists."""
    return json.loads(json.dumps(data, default=str))


def as_json(data: Any) -> str:
    """Plain data as our files store it: sorted keys, null for NaN and infinities."""
    text = json.dumps(_finite(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of a file; NaN and infinities become None.

    Raises:
        BANError: if the file is not JSON, or is JSON but no object.
    """
    try:
        data = json.loads(path.read_text("utf-8"), parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise BANError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BANError(f"{path} holds no mapping, so ban_hf did not write it.")
    return data


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a kill leaves the old file, or none."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(content)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write plain data as `as_json` formats it, whole or not at all."""
    write_text(path, as_json(data))


# Room on a disk


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be on."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def format_bytes(number: float) -> str:
    """A number of bytes in words, such as `1.44 kB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.3g} {units[0]}"
