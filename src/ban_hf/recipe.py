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
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("config", nargs="?", type=Path, default=None)
    given = [Path(argv[0])] if argv and not argv[0].startswith("-") else []
    parser.usage = "%(prog)s [CONFIG.yaml] [--flag value ...]"
    path = given[0] if given else quickstart
    try:
        values = read_config(path, known={action.dest for action in parser._actions})
        parser.set_defaults(**values)
        *parsed, rest = parser.parse_args_into_dataclasses(
            list(argv[len(given) :]), return_remaining_strings=True
        )
        if rest:
            flags = [option for action in parser._actions for option in action.option_strings]
            raise ValueError(f"unknown argument {rest[0]!r}.{did_you_mean(rest[0], flags)}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return tuple(parsed)


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        ValueError: if it is no mapping, or has a key that is not known; the near match is named.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'name: value' lines, one for each argument.")
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}.{did_you_mean(str(key), known)}")
    return {k: json.dumps(v) if isinstance(v, dict) else v for k, v in values.items()}


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence with the option that was meant, if one is near."""
    near = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
