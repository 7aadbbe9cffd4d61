"""What recipes have in common: a YAML file of arguments, flags that override it, the first line."""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ban_hf.errors import BANError, did_you_mean
from ban_hf.training.arguments import BANTrainingArguments


@dataclass
class FamilyArguments:
    """The network, its generations, and what they are compared with."""

    model_args: str = field(
        default="{}", metadata={"help": "Arguments of the network, as JSON: '{\"dropout\": 0.3}'."}
    )
    generations: int = field(default=3, metadata={"help": "Number of students after the teacher."})
    control: bool = field(
        default=False,
        metadata={"help": "Train label-trained networks too, as many as the ensemble has members."},
    )
    control_from: list[str] = field(
        default_factory=list,
        metadata={"help": "Output directories of other seeds: take their teachers as controls."},
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Go on from a generation on the Hub, ns/family-gen2@commit, or in a folder, "
            "runs/family/generation-2: the students are generations 3 and so on."
        },
    )
    plan: bool = field(
        default=False,
        metadata={"help": "Say how long the run will take and how much disk it needs, no more."},
    )
    smoke: bool = field(
        default=False, metadata={"help": "Shrink the run to seconds, on built-in data."}
    )

    def __post_init__(self) -> None:
        try:
            self.network_args = json.loads(self.model_args)
        except json.JSONDecodeError as error:
            raise BANError(f"model_args={self.model_args!r} is not JSON: {error}") from error
        if not isinstance(self.network_args, dict):
            raise BANError(f"model_args={self.model_args!r} must be a JSON object of names.")


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
    for action in tuple(parser._actions):
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # `--hub_private_repo` alone: yes
            no = [f"--no_{action.dest}", f"--no-{action.dest.replace('_', '-')}"]
            parser.add_argument(*no, dest=action.dest, action="store_false", help=argparse.SUPPRESS)
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
            raise BANError(f"unknown argument {name!r}.{did_you_mean(name, options)}")
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
        raise BANError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise BANError(f"{path} must hold 'name: value' lines, one for each argument.")
    known = list(known)
    for key in values:
        if key not in known:
            raise BANError(f"{path}: unknown key {key!r}.{did_you_mean(str(key), known)}")
    return values


def as_flag(name: str, value: Any) -> list[str]:
    """A value of a file as it would be given on the command line; nothing for null."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def begin_recipe(
    what: str,
    family: FamilyArguments,
    args: BANTrainingArguments,
    argv: Sequence[str],
    *,
    real: str,
) -> None:
    """Say in the first line what is about to run; shrink it first, if it is a smoke run.

    Args:
        what: network and data, in words.
        family: of the recipe; changed by `smoke` to two students.
        args: of every generation; changed by `smoke` to one epoch, into a folder of its own.
        argv: as given to `parse_recipe`: without any it is the quickstart.
        real: command of the real thing, which the quickstart tells.
    """
    if family.smoke:
        family.generations = min(2, family.generations)
        args.num_train_epochs, args.max_steps, args.logging_steps = 1, -1, 1
        if not any(word.startswith("--output_dir") for word in argv):
            args.output_dir += "-smoke"
    quiet_loading()
    if args.process_index:
        return
    # What the package tells of its choices, such as the precision, beside its warnings.
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("ban_hf").setLevel(logging.INFO)
    started = f" This is the quickstart; the real thing: {real}"
    if argv:  # flags without a file
        started = " What no flag says is the quickstart's." if argv[0].startswith("-") else ""
    teacher = f"generations from {family.teacher}:" if family.teacher else "a teacher and"
    several = f" by each of {args.objective}" if "," in args.objective else ""
    print(
        f"{what}: {teacher} {family.generations} students{several}, "
        f"{args.num_train_epochs:g} epochs each, into {args.output_dir}.{started}",
        flush=True,
    )
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if args.device.type == "cpu" and threads == 1 and cores > 1:  # what accelerate launch sets
        print(f"On one of {cores} cores: put OMP_NUM_THREADS={cores} before the command for all.")


def quiet_loading() -> None:
    """No progress bar for each load and save of a model; those of training and network stay."""
    shown = not are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()  # the Hub's, too
    if shown:
        enable_progress_bars()


def shareable_command(recipe: str, argv: Sequence[str], token: str | None) -> str:
    """The command that started a recipe, as a report shows it: without a token.

    Args:
        recipe: name of the file in `recipes/`.
        argv: as given to `parse_recipe`.
        token: what must not be shown, the arguments' `hub_token`.
    """
    words = [word.replace(token, "...") if token else word for word in argv]
    return shlex.join(["accelerate", "launch", f"recipes/{recipe}", *words])


def run_recipe(main: Callable[[list[str]], None]) -> None:
    """Run a recipe with the command line; what its user can mend is one line, not a traceback."""
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as error:
        logging.getLogger("ban_hf").debug("", exc_info=True)
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
