"""The command `ban-hf`: families on the Hub and in folders, and the paper's tables.

The parser is built from a table, without any heavy library. What a command does is in `commands`,
which is imported when the command line has been understood.
"""

import argparse
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from ban_hf.cli.terminal import one_line, say
from ban_hf.data.arguments import DataArguments
from ban_hf.errors import BANError, did_you_mean, is_debugging
from ban_hf.lineage.files import as_json

CACHE_DTYPES = ("float32", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    0 where it succeeded, 1 where it did not, with one line on standard error, or with `--json` an
    `error` on standard output; 2 (by SystemExit) for a command line that cannot be understood.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser, known = _parsers()
    if not words:
        parser.print_help()
        return 0
    _refuse_unknown(parser, known, words)
    args = parser.parse_args(words)
    args.words = words  # as a report shows them
    commands = importlib.import_module("ban_hf.cli.commands")
    try:
        answer = getattr(commands, args.command)(args)
        say(dump(answer.data) if args.json else answer.text)
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
            say(dump({"error": {"kind": kind, "message": message}}))
        else:
            print(f"ban-hf: {kind}: {message}", file=sys.stderr)
        return 1
    return 0


def dump(data: Any) -> str:
    """A JSON document."""
    return as_json(data).rstrip()


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
    options = [option for action in chosen._actions for option in action.option_strings]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in options:
            chosen.error(f"unknown argument {name!r}.{did_you_mean(name, options)}")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command."""
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
    for name, add_arguments, summary, more, examples in COMMANDS:
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="\n".join([textwrap.fill(more, 79), "", "examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        known[name] = command
    return parser, known


def _where(command: argparse.ArgumentParser) -> None:
    command.add_argument("where", metavar="WHERE", help="Hub id or folder, see below")
    command.add_argument("--revision", help="commit, tag or branch of the Hub (default: main)")


def _license(command: argparse.ArgumentParser) -> None:
    command.add_argument("--license", help="of the weights, as the Hub writes it: apache-2.0")


def _pull_arguments(command: argparse.ArgumentParser) -> None:
    _where(command)
    command.add_argument(
        "output_dir", metavar="OUTPUT_DIR", nargs="?", help="default: the repository's name"
    )


def _push_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="FOLDER", help="of a family, or of one generation")
    command.add_argument("repo_id", metavar="REPO_ID", help="ns/family, or ns/family-gen2")
    who = command.add_mutually_exclusive_group()
    who.add_argument("--private", action="store_true", default=None, help="for you alone to read")
    who.add_argument(
        "--public",
        dest="private",
        action="store_false",
        help="for everybody (default: private if the teacher is, else as your account has it)",
    )
    _license(command)
    command.add_argument("--teacher", metavar="NS/NAME@COMMIT", help="of a single generation")


def _data_arguments(command: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Fields of `DataArguments` as flags."""
    for part in fields(DataArguments):
        if part.name in names:
            kind = next(kind for kind in (int, float, str) if kind.__name__ in str(part.type))
            command.add_argument(
                f"--{part.name}",
                type=kind,
                default=part.default,
                required=part.name == "dataset_name",
                metavar=kind.__name__[0].upper(),
                help=part.metadata["help"],
            )


ANY_DATA = "dataset_name dataset_config dataset_revision image_column label_column text_column"
TRAINING_DATA = "image_size validation split_seed train_samples vocabulary_size train_words"


def _cache_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("teacher", metavar="TEACHER", help="folder or ns/family-gen2@revision")
    command.add_argument("folder", metavar="FOLDER", help="of the cache")
    _data_arguments(command, f"{ANY_DATA} {TRAINING_DATA}".split())
    command.add_argument(
        "--seed", type=int, metavar="I", help="of the students (default: the teacher's)"
    )
    command.add_argument("--epochs", type=float, metavar="F", help="default: the teacher's")
    command.add_argument(
        "--dtype", choices=CACHE_DTYPES, default="float32", help="float16 rounds, in half the room"
    )


def _ensemble_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("members", metavar="MEMBER", nargs="+", help="folder or ns/name@revision")
    command.add_argument("--weights", metavar="W", type=float, nargs="+", help="default: equal")
    _data_arguments(command, f"{ANY_DATA} window".split())
    command.add_argument(
        "--batch_size", metavar="N", type=int, help="images (500), or columns of a text (20)"
    )
    command.add_argument(
        "--output_dir", metavar="DIR", help="save the ensemble there, as one model"
    )


def _reproduce_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("table", metavar="TABLE", help="table1 to table6, or a YAML file")
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    command.add_argument("--rows", **several, help="default: all")
    command.add_argument(
        "--columns",
        **several,
        help="paper (default), all, or names; what they need comes with them",
    )
    command.add_argument("--seeds", type=int, default=1, metavar="N", help="how many (default: 1)")
    command.add_argument("--first_seed", type=int, default=1, metavar="N", help="default: 1")
    command.add_argument(
        "--budget", default="cpu", metavar="B", help="cpu (default), gpu, paper, or smoke"
    )
    command.add_argument(
        "--output_dir", default="runs/paper", metavar="DIR", help="default: runs/paper"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="jobs at a time (default: one a GPU, or one)"
    )
    command.add_argument(
        "--force", action="store_true", help="run the jobs of these cells again, though done"
    )
    instead = command.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="say which jobs are missing, no more")
    instead.add_argument(
        "--sizes", action="store_true", help="set parameters beside the paper's, no more"
    )


def _report_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("results", metavar="RESULTS.json", nargs="+", help="see below")
    command.add_argument("--output_dir", metavar="DIR", help="write the report and its pictures")


def _card_arguments(command: argparse.ArgumentParser) -> None:
    _where(command)
    command.add_argument(
        "--output_dir", metavar="DIR", help="write README.md and its picture there, not print it"
    )
    _license(command)


WHERE = (
    'WHERE is "ns/family" or "ns/family-gen2" on the Hub, with @REVISION if wanted (a commit, a '
    "tag or a branch), or the folder of a family, a generation or an ensemble."
)

#: Name in `commands`, its arguments, what it does in a line and in more, examples.
COMMANDS = (
    (
        "lineage",
        _where,
        "draw who taught whom, as a tree",
        f"{WHERE} Records alone are read, no weights are downloaded.",
        (
            "  ban-hf lineage ns/digits",
            "  ban-hf lineage ns/digits-gen2 --revision v1",
            "  ban-hf lineage runs/digits --json | jq '.generations[].metrics'",
        ),
    ),
    (
        "verify",
        _where,
        "download everything that a lineage names and check every hash",
        f"{WHERE} The exit status is 0 only if all of it is verified; what cannot be reached is "
        "not. Otherwise the error begins with its kind: TamperedFileError, TeacherChangedError, "
        "UnverifiableError and so on. Integrity is proved, not authorship.",
        (
            "  ban-hf verify ns/digits",
            "  ban-hf verify ns/digits-gen2@v1",
            "  ban-hf verify runs/digits && echo all is well",
        ),
    ),
    (
        "pull",
        _pull_arguments,
        "download a family or a generation, each file held against its record",
        f"{WHERE} Of a family come generation-0 and so on, and ensemble, as they were trained; of "
        "a generation it alone. A private one needs a token: `hf auth login`, or HF_TOKEN.",
        (
            "  ban-hf pull ns/digits",
            "  ban-hf pull ns/digits-gen2@v1 runs/mine",
        ),
    ),
    (
        "push",
        _push_arguments,
        "publish a family, or one generation",
        "A family becomes ns/family-gen0, ns/family-gen1 and so on, and ns/family, which holds the "
        "ensemble. Pushing again completes what is missing, and sends nothing that is there. The "
        "token is that of `hf auth login`, or of the environment variable HF_TOKEN: it is not "
        "taken from the command line, where others could read it.",
        (
            "  ban-hf push runs/digits ns/digits --private",
            "  ban-hf push runs/digits/generation-2 ns/digits-gen2",
            "  ban-hf push runs/mine/generation-3 ns/other --teacher ns/mine-gen2@v1",
        ),
    ),
    (
        "ensemble",
        _ensemble_arguments,
        "measure any models and their ensemble on the test split of a dataset",
        "The ensemble's probabilities are the mean of its members', with --weights or without; "
        "weights need not sum to 1. Members may be of any architecture, also ensembles, as long as "
        "they have the same classes, or words; each is given images of its own size and "
        "normalisation. NAME is what the recipes take: digits, cifar10, cifar100, grammar, ptb, "
        "wikitext2, a Hub id, a folder or a file.",
        (
            "  ban-hf ensemble runs/digits/generation-1 runs/digits/generation-2 \\",
            "      --dataset_name digits",
            "  ban-hf ensemble ns/digits-gen1 ns/digits-gen2@v1 --weights 1 3 \\",
            "      --dataset_name digits --output_dir runs/both",
        ),
    ),
    (
        "cache",
        _cache_arguments,
        "keep what a teacher says in all epochs, ahead of its students",
        "Each student then costs what labels cost, and learns, bit for bit, what it would from the "
        "teacher itself. The data are given as to the recipe that trained the teacher; batch size, "
        "epochs, precision and seed are in its record. What is there already is not asked again. A "
        "student reads it with `--teacher TEACHER --teacher_cache FOLDER`.",
        (
            "  ban-hf cache runs/digits/generation-0 runs/cache --dataset_name digits \\",
            "      --train_samples 100",
            "  ban-hf cache ns/cifar-gen0@v1 runs/cache --dataset_name cifar100 --seed 7 \\",
            "      --dtype float16",
        ),
    ),
    (
        "reproduce",
        _reproduce_arguments,
        "train and measure rows of a table of the paper, beside its figures",
        "Furlanello et al. 2018, Tables 1 to 6, and controls that it does not have. --budget paper "
        "is its own networks, data and schedule (a GPU, days); gpu shortens the training; cpu also "
        "takes small networks and a part of the data (some minutes a network on two cores), and "
        "says so in the report. A cell is a job, named by a digest of its arguments: what is done "
        "is skipped, what was killed goes on, whichever table asked for it.",
        (
            "  ban-hf reproduce table2 --rows densenet-90-60 --seeds 3",
            "  ban-hf reproduce table2 --columns ban cwtm labels-ens3 --budget gpu",
            "  ban-hf reproduce table5 --budget paper --plan",
            "  ban-hf reproduce table4 --sizes",
        ),
    ),
    (
        "report",
        _report_arguments,
        "report any number of results.json as one table, with verdicts and pictures",
        "Of `ban-hf reproduce`: any seeds, rows and columns of one table, made by the same code. "
        "Of a recipe: the seeds of one job.",
        (
            "  ban-hf report runs/paper/table2-cpu/results.json --output_dir results/table2",
            "  ban-hf report gpu0/table2-gpu/results.json gpu1/table2-gpu/results.json",
            "  ban-hf report runs/cifar/seed-*/results.json --output_dir results/cifar",
        ),
    ),
    (
        "card",
        _card_arguments,
        "render a model card again, from its lineage",
        WHERE,
        (
            "  ban-hf card ns/digits-gen2",
            "  ban-hf card runs/digits/generation-2 --license apache-2.0 --output_dir cards/2",
        ),
    ),
)
