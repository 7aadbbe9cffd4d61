"""A recipe's arguments: a YAML file of them, and flags that override it."""

import argparse
import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse_recipe(
    dataclasses: Sequence[type], argv: Sequence[str], *, quickstart: Path, description: str
) -> tuple[Any, ...]:
    """Arguments from `[CONFIG.yaml] [--flag value ...]`; without a config those of `quickstart`.

    Prints an error that names the argument and what was near, and exits with 2, for an unknown key
    of the file, an unknown flag, or a value that the arguments refuse.
    """
    parser = HfArgumentParser(
        dataclasses, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.usage = "%(prog)s [CONFIG.yaml] [--flag value ...]"
    given = [Path(argv[0])] if argv and not argv[0].startswith("-") else []
    known = {action.dest for action in parser._actions} - {"help"}
    try:
        values = read_config(given[0] if given else quickstart, known)
        # As flags, ahead of those given, so that the file's values are checked as theirs are.
        flags = [word for name, value in values.items() for word in as_flag(name, value)]
        *parsed, rest = parser.parse_args_into_dataclasses(
            [*flags, *argv[len(given) :]], return_remaining_strings=True, look_for_args_file=False
        )
        if rest:
            options = [option for action in parser._actions for option in action.option_strings]
            name = rest[0].partition("=")[0]
            raise ValueError(f"unknown argument {name!r}.{did_you_mean(name, options)}")
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    return tuple(parsed)


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        ValueError: if it is no mapping, or has a key that is not known; the near match is named.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'name: value' lines, one for each argument.")
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}.{did_you_mean(str(key), known)}")
    return values


def as_flag(name: str, value: Any) -> list[str]:
    """A value of a file as it would be given on the command line; nothing for null."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence with the option that was meant, if one is near."""
    near = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
