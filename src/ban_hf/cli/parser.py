"""The parser of `ban-hf`: the arguments of each command, and its docstring as help."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

from ban_hf.cli.terminal import unknown_argument
from ban_hf.data.arguments import DataArguments
from ban_hf.errors import did_you_mean

OF_ANY_DATASET = (
    "dataset_name dataset_config dataset_revision image_column label_column text_column".split()
)
METAVARS = {int: "N", float: "F", str: "S"}

PARSER = argparse.ArgumentParser(
    prog="ban-hf",
    description="Born-again networks: families of generations, on the Hub and in folders.",
    epilog="`ban-hf COMMAND --help` explains a command and shows how it is used.",
    allow_abbrev=False,
)
PARSER.add_argument("--version", action="version", version=f"%(prog)s {version('ban-hf')}")
COMMANDS = PARSER.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")


@dataclass(frozen=True)
class Answer:
    """What a command found, as data for `--json` and as text."""

    data: dict[str, Any]
    text: str


Argument = Callable[[argparse._ActionsContainer], object]  # adds itself to a parser or a group
Command = Callable[[argparse.Namespace], Answer]


def command(*arguments: Argument) -> Callable[[Command], Command]:
    """Makes a function the command of its name, and its docstring the help."""

    def add(run: Command) -> Command:
        summary, _, more = inspect.cleandoc(run.__doc__ or "").partition("\n\n")
        parser = COMMANDS.add_parser(
            run.__name__,
            help=summary[:1].lower() + summary[1:].rstrip("."),
            description=summary,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(run=run)
        for add_to in arguments:
            add_to(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return run

    return add


def argument(name: str, description: str, **options: Any) -> Argument:
    """A flag, or a word that is named in capitals; `options` are those of `add_argument`."""
    if not name.startswith("--"):
        options.setdefault("metavar", name.upper())
    elif "type" in options:
        options.setdefault("metavar", METAVARS[options["type"]])
    return lambda parser: parser.add_argument(name, help=description, **options)


def either(*arguments: Argument) -> Argument:
    """Flags of which at most one is given."""

    def add(parser: argparse._ActionsContainer) -> None:
        group = parser.add_mutually_exclusive_group()
        for each in arguments:
            each(group)

    return add


def data_arguments(*names: str) -> list[Argument]:
    """Fields of `DataArguments` as flags: those that find a dataset, and others by name."""
    found = []
    for part in fields(DataArguments):
        if part.name in (*OF_ANY_DATASET, *names):
            kind = next(kind for kind in METAVARS if kind.__name__ in str(part.type))
            options = {"default": part.default, "required": part.name == "dataset_name"}
            found.append(argument(f"--{part.name}", part.metadata["help"], type=kind, **options))
    return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line, the command as `run`, and as `words` the line itself.

    Says what was near where a command or a flag is unknown, ahead of what else is missing.
    """
    name = words[0]
    if not name.startswith("-") and name not in COMMANDS.choices:
        near = did_you_mean(name, COMMANDS.choices) or f" There are: {', '.join(COMMANDS.choices)}."
        PARSER.error(f"unknown command {name!r}.{near}")
    chosen = COMMANDS.choices.get(name, PARSER)
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in chosen._option_string_actions:
            chosen.error(unknown_argument(word, chosen))
    return PARSER.parse_args(words, argparse.Namespace(words=words))
