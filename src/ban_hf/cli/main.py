"""The command `ban-hf`: families on the Hub and in folders, and the paper's tables."""

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ban_hf.cli.commands import COMMANDS
from ban_hf.cli.terminal import one_line, say, unknown_argument
from ban_hf.errors import BANError, did_you_mean, is_debugging
from ban_hf.lineage.files import as_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    0 where it succeeded, 1 where it did not, with one line on standard error, or with `--json` an
    `error` on standard output; 2 (by SystemExit) for a command line that cannot be understood.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser, known = make_parsers()
    if not words:
        parser.print_help()
        return 0
    _refuse_unknown(parser, known, words)
    args = parser.parse_args(words)
    args.words = words  # as a report shows them
    run, _ = COMMANDS[args.command]
    try:
        answer = run(args)
        say(_dump(answer.data) if args.json else answer.text)
    except BrokenPipeError:  # its reader has gone: `ban-hf lineage ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("ban-hf: stopped", file=sys.stderr)
        return 130
    except (BANError, OSError) as error:
        if is_debugging(words):
            raise
        kind, message = type(error).__name__, one_line(error)
        if args.json:
            say(_dump({"error": {"kind": kind, "message": message}}))
        else:
            print(f"ban-hf: {kind}: {message}", file=sys.stderr)
        return 1
    return 0


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


def _refuse_unknown(
    parser: argparse.ArgumentParser,
    known: dict[str, argparse.ArgumentParser],
    words: Sequence[str],
) -> None:
    """Say what was near where a command or a flag is unknown, ahead of what else is missing."""
    command = words[0]
    if not command.startswith("-") and command not in known:
        near = did_you_mean(command, known) or f" There are: {', '.join(known)}."
        parser.error(f"unknown command {command!r}.{near}")
    chosen = known.get(command, parser)
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in chosen._option_string_actions:
            chosen.error(unknown_argument(name, chosen))


def _dump(data: Any) -> str:
    return as_json(data).decode().rstrip()
