"""Room on a disk, and sizes in words."""

import shutil
from pathlib import Path


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
