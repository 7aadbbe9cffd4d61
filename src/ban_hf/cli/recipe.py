"""What the recipes share: arguments from a YAML file and flags, and the run that they describe.

A recipe names its task, its quickstart and the command of the real thing; `run_recipe` does the
rest: parse, load the data, train the family of each objective, measure, report, publish.
"""

import argparse
import dataclasses
import importlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ban_hf.data.arguments import ONLY, DataArguments
from ban_hf.errors import BANError, did_you_mean, is_debugging
from ban_hf.training.distillation import DistillationArguments

if TYPE_CHECKING:
    from transformers import HfArgumentParser

    from ban_hf.training.arguments import BANTrainingArguments

IMAGES = "image-classification"

#: What `--help` says of the flags that are not ours.
COMMON = """
Every argument of transformers.TrainingArguments is a flag too, among them --output_dir, --seed,
--num_train_epochs, --per_device_train_batch_size, --learning_rate, --weight_decay, --optim,
--bf16, --eval_strategy, --save_strategy, --load_best_model_at_end, --push_to_hub, --hub_model_id,
--hub_private_repo. `--help_all` explains them all.
"""


@dataclass
class FamilyArguments:
    """The network, its generations, and what they are compared with."""

    model_name: str | None = field(
        default=None,
        metadata={
            "help": "Images: cifar_wrn_28_10, cifar_densenet_90_60, ..., or any name of timm. "
            "Texts: lstm_200, lstm_650, lstm_1500, char_cnn_lstm_small or _large."
        },
    )
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
            "help": "Continue from a generation on the Hub, ns/family-gen2@commit, or in a folder, "
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


@dataclass
class Recipe:
    """A run as its arguments describe it.

    Attributes:
        task: `image-classification` or `text-generation`.
        data: which data.
        family: which network and generations.
        args: of every training.
        objectives: by the name that was given, the objective and its `label_weight`.
        command: that started the run, for its report.
    """

    task: str
    data: DataArguments
    family: FamilyArguments
    args: "BANTrainingArguments"
    objectives: dict[str, tuple[str, float | None]]
    command: str


def run_recipe(
    task: str, *, quickstart: Path, real: str, description: str, argv: Sequence[str] | None = None
) -> None:
    """Run a recipe with the command line; what its user can mend is one line, not a traceback.

    Args:
        task: `image-classification` or `text-generation`.
        quickstart: configuration that runs without arguments.
        real: command of the real thing, which the quickstart names.
        description: for `--help`.
        argv: by default the command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & {*argv}:
        ours = (FamilyArguments, DataArguments, DistillationArguments)
        make_parser(ours, task, description + COMMON).print_help()
        return
    try:
        recipe = parse_recipe(task, argv, quickstart=quickstart, description=description)
        run(recipe, argv, real)
    except (BANError, FloatingPointError) as error:
        if is_debugging(argv):
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")


# Arguments


def make_parser(dataclass_types: Sequence[type], task: str, description: str) -> "HfArgumentParser":
    """The parser of a recipe's flags; its help leaves out the flags of another task."""
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    parser = HfArgumentParser(
        dataclass_types,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or a misspelled flag might be taken for another
    )
    parser.usage = "%(prog)s [CONFIG.yaml] [--flag value ...]"
    if "--debug" not in parser._option_string_actions:
        parser.add_argument("--debug", nargs="?", help="Show the traceback of an error.")
    for action in tuple(parser._actions):
        if action.dest == "debug":  # alone it is ours; transformers' own has a value
            action.nargs, action.const = "?", ""
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # `--hub_private_repo` alone: yes
            no = [f"--no_{action.dest}", f"--no-{action.dest.replace('_', '-')}"]
            parser.add_argument(*no, dest=action.dest, action="store_false", help=argparse.SUPPRESS)
        if ONLY.get(action.dest, task) != task:
            action.help = argparse.SUPPRESS
    return parser


def parse_recipe(task: str, argv: Sequence[str], *, quickstart: Path, description: str) -> Recipe:
    """The run that `[CONFIG.yaml] [--flag value ...]` describes; without a config the quickstart.

    Prints an error that names the argument and what was near, and exits with 2, for an unknown key
    of the file, an unknown flag, or a value that the arguments refuse.
    """
    from ban_hf.jobs.setup import read_objectives
    from ban_hf.training.arguments import BANTrainingArguments

    types = (DataArguments, FamilyArguments, BANTrainingArguments)
    parser = make_parser(types, task, description)
    if "--help_all" in argv:
        parser.print_help()
        sys.exit()
    given = [Path(argv[0])] if argv and not argv[0].startswith("-") else []
    known = {action.dest for action in parser._actions} - {"help"}
    try:
        values = read_config(given[0] if given else quickstart, known)
        # As flags, ahead of those given, so that the file's values are checked as theirs are.
        flags = [word for name, value in values.items() for word in as_flag(name, value)]
        parsed, rest = parser.parse_known_args([*flags, *argv[len(given) :]])
        if rest:
            options = [option for action in parser._actions for option in action.option_strings]
            name = rest[0].partition("=")[0]
            raise BANError(f"unknown argument {name!r}.{did_you_mean(name, options)}")
        found = dict(vars(parsed))
        objectives = read_objectives(found["objective"], found["label_weight"])
        (objective, label_weight), *_ = objectives.values()
        found |= {"objective": objective, "label_weight": label_weight}
        data, family, args = parser.parse_dict(found)
        data.check_task(task)
    except (ValueError, TypeError, OSError) as error:
        if is_debugging(argv):
            raise
        parser.error(str(error))
    command = shareable_command(Path(sys.argv[0]).name, argv, args.hub_token)
    return Recipe(task, data, family, args, objectives, command)


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        BANError: if it is no mapping, or has a key that is not known; the near match is named.
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


def shareable_command(recipe: str, argv: Sequence[str], token: str | None) -> str:
    """The command that started a recipe, as a report shows it: without a token."""
    words = [word.replace(token, "...") if token else word for word in argv]
    return shlex.join(["accelerate", "launch", f"recipes/{recipe}", *words])


# The run


def run(recipe: Recipe, argv: Sequence[str], real: str) -> None:
    """Train the families of a recipe, measure and report them; or say what that would take."""
    from ban_hf.data.arguments import load_splits
    from ban_hf.data.images import ImageSplits
    from ban_hf.jobs.setup import describe_dataset, prepare

    if recipe.family.smoke:
        recipe = shrink(recipe, argv)
    _begin(recipe, argv, real)
    data, family = recipe.data, recipe.family
    splits = load_splits(data, recipe.task)
    if family.smoke and isinstance(splits, ImageSplits):
        splits.test = splits.test.select(range(16), augment=False)
        if splits.validation is not None:
            splits.validation = splits.validation.select(range(16), augment=False)
    name = str(family.model_name)
    args, setup = prepare(splits, recipe.args, name, family.network_args, data.window)
    dataset = describe_dataset(splits, data.window)
    # By its name, as `ban-hf` finds its commands: what parses arguments does not know what runs.
    families = importlib.import_module("ban_hf.families").Families(
        setup,
        args,
        recipe.objectives,
        family.generations,
        control=family.control,
        control_from=family.control_from,
        teacher=family.teacher,
        title=f"{name} on {dataset['name']}",
        dataset=dataset,
        command=recipe.command,
    )
    if family.plan:
        families.plan()
    else:
        families.run()


def shrink(recipe: Recipe, argv: Sequence[str]) -> Recipe:
    """A run of seconds: one epoch of a few items of built-in data, two students, its own folder."""
    args, family = recipe.args, recipe.family
    family.generations = min(2, family.generations)
    args.num_train_epochs, args.max_steps, args.logging_steps = 1, -1, 1
    if not any(word.startswith("--output_dir") for word in argv):
        args.output_dir += "-smoke"
    if recipe.task == IMAGES:
        data = DataArguments("digits", image_size=8, train_samples=8)
        args.per_device_train_batch_size = 8
    else:
        data = DataArguments("grammar", train_words=60, window=5)
        args.per_device_train_batch_size, args.per_device_eval_batch_size = 4, 200
        family.network_args["hidden_size"] = 8
    return dataclasses.replace(recipe, data=data)


def _begin(recipe: Recipe, argv: Sequence[str], real: str) -> None:
    """Say in the first line what is about to run."""
    import torch

    from ban_hf.jobs.training import quiet_loading

    args, family = recipe.args, recipe.family
    quiet_loading()
    if args.process_index:
        return
    # The package's own choices, such as the precision, are logged beside its warnings.
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("ban_hf").setLevel(logging.INFO)
    started = f" This is the quickstart; the real thing: {real}"
    if argv:  # flags without a file
        started = " What no flag says is the quickstart's." if argv[0].startswith("-") else ""
    teacher = f"generations from {family.teacher}:" if family.teacher else "a teacher and"
    several = f" by each of {','.join(recipe.objectives)}" if len(recipe.objectives) > 1 else ""
    print(
        f"{family.model_name} on {recipe.data.dataset_name}: {teacher} {family.generations} "
        f"students{several}, {args.num_train_epochs:g} epochs each, into {args.output_dir}."
        f"{started}",
        flush=True,
    )
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if args.device.type == "cpu" and threads == 1 and cores > 1:  # what accelerate launch sets
        print(f"On one of {cores} cores: put OMP_NUM_THREADS={cores} before the command for all.")
