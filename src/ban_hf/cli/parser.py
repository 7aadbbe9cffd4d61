"""The parser of `ban-hf`: the arguments of each command, and its docstring as help."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

from ban_hf.data.arguments import DataArguments
from ban_hf.errors import did_you_mean

OF_ANY_DATASET = (
    "dataset_name dataset_config dataset_revision image_column label_column text_column".split()
)
METAVARS = {int: "N", float: "F", str: "S"}


@dataclass(frozen=True)
class Answer:
    """What a command found, as data for `--json` and as text."""

    data: dict[str, Any]
    text: str


Argument = Callable[[argparse._ActionsContainer], object]  # adds itself to a parser or a group
Command = Callable[[argparse.Namespace], Answer]

COMMANDS: dict[str, tuple[Command, Sequence[Argument]]] = {}


def command(*arguments: Argument) -> Callable[[Command], Command]:
    """Makes a function the command of its name."""

    def register(run: Command) -> Command:
        COMMANDS[run.__name__] = (run, arguments)
        return run

    return register


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


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command, whose help is its docstring."""
    parser = argparse.ArgumentParser(
        prog="ban-hf",
        description="Born-again networks: families of generations, on the Hub and in folders.",
        epilog="`ban-hf COMMAND --help` explains a command and shows how it is used.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('ban-hf')}")
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command"
    )
    known: dict[str, argparse.ArgumentParser] = {}
    for name, (run, arguments) in COMMANDS.items():
        summary, _, more = inspect.cleandoc(run.__doc__ or "").partition("\n\n")
        known[name] = subparsers.add_parser(
            name,
            help=summary[:1].lower() + summary[1:].rstrip("."),
            description=summary,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for add_to in arguments:
            add_to(known[name])
        known[name].add_argument("--json", action="store_true", help="print one JSON document")
        known[name].add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
    return parser, known


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line, and as `words` the line itself.

    Says what was near where a command or a flag is unknown, ahead of what else is missing.
    """
    parser, known = make_parsers()
    command = words[0]
    if not command.startswith("-") and command not in known:
        near = did_you_mean(command, known) or f" There are: {', '.join(known)}."
        parser.error(f"unknown command {command!r}.{near}")
    chosen = known.get(command, parser)
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in chosen._option_string_actions:
            chosen.error(unknown_argument(name, chosen))
    return parser.parse_args(words, argparse.Namespace(words=words))


def unknown_argument(word: str, parser: argparse.ArgumentParser) -> str:
    """What is said of a word that a parser does not know."""
    name = word.partition("=")[0]
    return f"unknown argument {name!r}.{did_you_mean(name, parser._option_string_actions)}"
