"""The command `ban-hf`: families on the Hub and in folders, and the paper's tables.

A command takes its arguments and returns an `Answer`; its docstring is its help. Heavy libraries
are imported by the commands that need them: a lineage is read, verified, pulled, pushed and
reported without torch.
"""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ban_hf.cli.parser import (
    PARSER,
    Answer,
    argument,
    command,
    data_arguments,
    either,
    parse,
)
from ban_hf.cli.terminal import draw_tree, measurement_table, one_line, say, table
from ban_hf.data.arguments import DataArguments
from ban_hf.errors import BANError, is_debugging
from ban_hf.lineage.family import Lineage, finished_generations
from ban_hf.lineage.files import as_json, read_json
from ban_hf.lineage.record import RECORD, Record
from ban_hf.training.distillation import CACHE_DTYPES

if TYPE_CHECKING:
    from ban_hf.jobs.reproduction import Reproduction

PROVED = (
    "Verified: the generations fall by one down to 0; each teacher and member is, by the hashes of "
    "its record and its weights, the one that its student or ensemble recorded; every file, of "
    "the bases of adapters too, has the size and the sha256 of its record; no other weights or "
    "code are beside them."
)
NOT_PROVED = (
    "Not proved: who made them, and that the metrics are true. Hashes prove integrity, not "
    "authorship."
)


WHERE = (
    argument(
        "where",
        '"ns/family" or "ns/family-gen2" on the Hub, with @REVISION if wanted (a commit, a '
        "tag or a branch), or the folder of a family, a generation or an ensemble",
    ),
    argument("--revision", "commit, tag or branch of the Hub (default: main)"),
)
LICENSE = argument("--license", "of the weights, as the Hub writes it: apache-2.0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    0 where it succeeded, 1 where it did not, with one line on standard error, or with `--json` an
    `error` on standard output; 2 (by SystemExit) for a command line that cannot be understood.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        PARSER.print_help()
        return 0
    args = parse(words)
    try:
        answer: Answer = args.run(args)
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


def _dump(data: Any) -> str:
    return as_json(data).rstrip()


@command(*WHERE)
def lineage(args: argparse.Namespace) -> Answer:
    """Draw who taught whom, as a tree.

    Records alone are read, no weights are downloaded.

    Examples:
      ban-hf lineage ns/digits
      ban-hf lineage ns/digits-gen2 --revision v1
      ban-hf lineage runs/digits --json | jq '.generations[].metrics'
    """
    from ban_hf.hub.verification import load_lineage

    found = load_lineage(args.where, args.revision)
    return Answer(_as_data(found), draw_tree(found))


@command(*WHERE)
def verify(args: argparse.Namespace) -> Answer:
    """Download everything that a lineage names and check every hash.

    The exit status is 0 only if all of it is verified; what cannot be reached is
    not. Otherwise the error begins with its kind: TamperedFileError,
    TeacherChangedError, UnverifiableError and so on. Integrity is proved, not
    authorship.

    Examples:
      ban-hf verify ns/digits
      ban-hf verify ns/digits-gen2@v1
      ban-hf verify runs/digits && echo all is well
    """
    from ban_hf.hub.verification import verify_lineage

    found = verify_lineage(args.where, args.revision)
    rows, lines = [], []
    for record, location in zip(found.records, found.locations, strict=True):
        files, size = len(record.files), sum(file.size for file in record.files)
        rows.append({"name": record.name, "files": files, "bytes": size, "place": location})
        lines.append([record.name, f"{files} files", f"{size:,} bytes", location])
    data = {"verified": True, "family": found.family, "places": rows}
    prose = "\n".join(textwrap.fill(text, 79) for text in (PROVED, NOT_PROVED))
    return Answer(data | {"proved": PROVED, "not_proved": NOT_PROVED}, f"{table(lines)}\n{prose}")


@command(*WHERE, argument("output_dir", "default: the repository's name", nargs="?"))
def pull(args: argparse.Namespace) -> Answer:
    """Download a family or a generation, each file held against its record.

    Of a family come generation-0 and so on, and ensemble, as they were trained; of
    a generation it alone. A private one needs a token: `hf auth login`, or
    HF_TOKEN.

    Examples:
      ban-hf pull ns/digits
      ban-hf pull ns/digits-gen2@v1 runs/mine
    """
    from ban_hf.hub.download import pull

    folder = args.output_dir or Path(args.where.partition("@")[0]).name
    found = pull(args.where, folder, revision=args.revision)
    text = f"Pulled into {folder}, each file as its record says.\n{draw_tree(found)}"
    return Answer({"output_dir": str(folder)} | _as_data(found), text)


@command(
    argument("folder", "of a family, or of one generation"),
    argument("repo_id", "ns/family, or ns/family-gen2"),
    either(
        argument("--private", "for you alone to read", action="store_true", default=None),
        argument(
            "--public",
            "for everybody (default: private if the teacher is, else as your account has it)",
            dest="private",
            action="store_false",
        ),
    ),
    LICENSE,
    argument("--teacher", "of a single generation", metavar="NS/NAME@COMMIT"),
)
def push(args: argparse.Namespace) -> Answer:
    """Publish a family, or one generation.

    A family becomes ns/family-gen0, ns/family-gen1 and so on, and ns/family, which
    holds the ensemble. Pushing again completes what is missing, and sends nothing
    that is there. The token is that of `hf auth login`, or of the environment
    variable HF_TOKEN: it is not taken from the command line, where others could
    read it.

    Examples:
      ban-hf push runs/digits ns/digits --private
      ban-hf push runs/digits/generation-2 ns/digits-gen2
      ban-hf push runs/mine/generation-3 ns/other --teacher ns/mine-gen2@v1
    """
    from ban_hf.hub.publishing import push_family, push_generation

    folder = Path(args.folder)
    options = {"private": args.private, "license": args.license}
    if finished_generations(folder):
        if args.teacher is not None:
            raise BANError("--teacher is of a single generation; a family has its own teachers.")
        commits = push_family(folder, args.repo_id, **options)
    elif (folder / RECORD).is_file():
        commits = [push_generation(folder, args.repo_id, teacher=args.teacher, **options)]
    else:
        raise BANError(
            f"{folder} is no folder of a family, which has generation-0 and so on, nor of a "
            f"generation, which has a {RECORD}."
        )
    published = [{"repo_id": c.repo_id, "revision": c.revision} for c in commits]
    return Answer({"published": published}, "\n".join(f"published {commit}" for commit in commits))


@command(
    argument("members", "folder or ns/name@revision", metavar="MEMBER", nargs="+"),
    argument("--weights", "default: equal", metavar="W", type=float, nargs="+"),
    *data_arguments("window"),
    argument("--batch_size", "images (500), or columns of a text (20)", type=int),
    argument("--output_dir", "save the ensemble there, as one model", metavar="DIR"),
)
def ensemble(args: argparse.Namespace) -> Answer:
    r"""Measure any models and their ensemble on the test split of a dataset.

    The ensemble's probabilities are the mean of its members', with --weights or
    without; weights need not sum to 1. Members may be of any architecture, also
    ensembles, as long as they have the same classes, or words; each is given
    images of its own size and normalisation. The dataset's name is what the
    recipes take: digits, cifar10, cifar100, grammar, ptb, wikitext2, a Hub id, a
    folder or a file.

    Examples:
      ban-hf ensemble runs/digits/generation-1 runs/digits/generation-2 \
          --dataset_name digits
      ban-hf ensemble ns/digits-gen1 ns/digits-gen2@v1 --weights 1 3 \
          --dataset_name digits --output_dir runs/both
    """
    from ban_hf.cli import models
    from ban_hf.tasks.base import normalized_weights

    normalized_weights(args.weights, len(args.members))  # all that can be refused before the work
    members = models.load_members(args.members)
    if args.output_dir is not None:
        models.check_savable(members, args.output_dir)
    measured = models.measure_members(members, _data(args), args.weights, args.batch_size)
    text = measurement_table(measured)
    if args.output_dir is not None:
        models.save_ensemble(members, args.output_dir, args.weights)
        text += f"\nThe ensemble is in {args.output_dir}."
    return Answer(measured | {"output_dir": args.output_dir}, text)


@command(
    argument("teacher", "folder or ns/family-gen2@revision"),
    argument("folder", "of the cache"),
    *data_arguments(
        "image_size", "validation", "split_seed", "train_samples", "vocabulary_size", "train_words"
    ),
    argument("--seed", "of the students (default: the teacher's)", type=int),
    argument("--epochs", "default: the teacher's", type=float),
    argument(
        "--dtype", "float16 rounds, in half the room", choices=CACHE_DTYPES, default="float32"
    ),
)
def cache(args: argparse.Namespace) -> Answer:
    r"""Keep what a teacher says in all epochs, ahead of its students.

    Each student then costs what labels cost, and learns, bit for bit, what it
    would from the teacher itself. The data are given as to the recipe that trained
    the teacher; batch size, epochs, precision and seed are in its record. What is
    there already is not asked again. A student reads it with
    `--teacher TEACHER --teacher_cache FOLDER`.

    Examples:
      ban-hf cache runs/digits/generation-0 runs/cache --dataset_name digits \
          --train_samples 100
      ban-hf cache ns/cifar-gen0@v1 runs/cache --dataset_name cifar100 --seed 7 \
          --dtype float16
    """
    from ban_hf.cli.models import load_teacher
    from ban_hf.jobs.cache import check_epochs, fill_cache

    check_epochs(args.epochs)  # before anything is downloaded
    teacher, record = load_teacher(args.teacher)
    options = {"seed": args.seed, "epochs": args.epochs, "dtype": args.dtype}
    filled = fill_cache(teacher.model, record, args.folder, _data(args), **options)
    text = (
        f"{filled['folder']} holds the outputs of {args.teacher} for {filled['items']:,} items, in "
        f"{filled['files']} files of an epoch each, {filled['bytes']:,} bytes. Students read it "
        f"with --teacher {args.teacher} --teacher_cache {filled['folder']}."
    )
    wrapped = textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)
    return Answer({"teacher": str(teacher.location)} | filled, wrapped)


NAMES: dict[str, Any] = {"nargs": "+", "metavar": "NAME", "default": ()}


@command(
    argument("table", "table1 to table6, or a YAML file"),
    argument("--rows", "default: all", **NAMES),
    argument(
        "--columns", "paper (default), all, or names; what they need comes with them", **NAMES
    ),
    argument("--seeds", "how many (default: 1)", type=int, default=1),
    argument("--first_seed", "default: 1", type=int, default=1),
    argument("--budget", "cpu (default), gpu, paper, or smoke", default="cpu", metavar="B"),
    argument("--output_dir", "default: runs/paper", default="runs/paper", metavar="DIR"),
    argument("--workers", "jobs at a time (default: one a GPU, or one)", type=int),
    argument("--force", "run the jobs of these cells again, though done", action="store_true"),
    either(
        argument("--plan", "say which jobs are missing, no more", action="store_true"),
        argument("--sizes", "set parameters beside the paper's, no more", action="store_true"),
    ),
)
def reproduce(args: argparse.Namespace) -> Answer:
    """Train and measure rows of a table of the paper, beside its figures.

    Furlanello et al. 2018, Tables 1 to 6, and controls that it does not have.
    --budget paper is its own networks, data and schedule (a GPU, days); gpu
    shortens the training; cpu also takes small networks and a part of the data
    (some minutes a network on two cores), and says so in the report. A cell is a
    job, named by a digest of its arguments: what is done is skipped, what was
    killed goes on, whichever table asked for it.

    Examples:
      ban-hf reproduce table2 --rows densenet-90-60 --seeds 3
      ban-hf reproduce table2 --columns ban cwtm labels-ens3 --budget gpu
      ban-hf reproduce table5 --budget paper --plan
      ban-hf reproduce table4 --sizes
    """
    from ban_hf.jobs.executor import JobsFailed
    from ban_hf.jobs.reproduction import Reproduction
    from ban_hf.reports.report import write_report

    for name, least in (("seeds", 1), ("first_seed", 0), ("workers", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise BANError(f"{name}={value} must be at least {least}.")
    requested = Reproduction(
        args.table,
        args.budget,
        rows=args.rows,
        columns=args.columns,
        seeds=range(args.first_seed, args.first_seed + args.seeds),
        output_dir=args.output_dir,
    )
    if args.sizes:
        return _sizes(requested)
    jobs, missing = ([job.folder for job in each] for each in (requested.jobs, requested.missing))
    line = textwrap.fill(
        f"{requested.table.name} at the budget {args.budget}: {len(jobs)} jobs, of which "
        f"{len(jobs) - len(missing)} are done, into {args.output_dir}. {requested.table.says}.",
        79,
    )
    if args.plan:
        return Answer({"jobs": jobs, "missing": missing}, "\n".join([line, *missing]))
    print(line, file=sys.stderr)
    failed: JobsFailed | None = None
    try:
        requested.run(args.workers, force=args.force)
    except JobsFailed as error:
        if not requested.finished_cells:
            raise
        failed = error
    results = requested.results(shlex.join(["ban-hf", *args.words]))
    text = write_report(results, requested.folder)
    _write_cards(requested)
    if failed is not None:
        raise JobsFailed(f"{failed} A report of what is done: {requested.folder}") from failed
    data = msgspec.to_builtins(results)
    return Answer(data, f"{text}\nThe report, with pictures: {requested.folder}")


@command(
    argument("results", "see below", metavar="RESULTS.json", nargs="+"),
    argument("--output_dir", "write the report and its pictures", metavar="DIR"),
)
def report(args: argparse.Namespace) -> Answer:
    """Report any number of results.json as one table, with verdicts and pictures.

    Of `ban-hf reproduce`: any seeds, rows and columns of one table, made by the
    same code. Of a recipe: the seeds of one job.

    Examples:
      ban-hf report runs/paper/table2-cpu/results.json --output_dir results/table2
      ban-hf report gpu0/table2-gpu/results.json gpu1/table2-gpu/results.json
      ban-hf report runs/cifar/seed-*/results.json --output_dir results/cifar
    """
    from ban_hf.reports.reading import read_results
    from ban_hf.reports.report import report_text, write_report

    results, folder = read_results(args.results), args.output_dir
    text = report_text(results) if folder is None else write_report(results, folder)
    return Answer(msgspec.to_builtins(results), text)


@command(
    *WHERE,
    argument("--output_dir", "write README.md and its picture there, not print it", metavar="DIR"),
    LICENSE,
)
def card(args: argparse.Namespace) -> Answer:
    """Render a model card again, from its lineage.

    Examples:
      ban-hf card ns/digits-gen2
      ban-hf card runs/digits/generation-2 --license apache-2.0 --output_dir cards/2
    """
    from ban_hf.hub.publishing import card, write_card

    options = {"revision": args.revision, "license": args.license}
    if args.output_dir is None:
        content = str(card(args.where, **options))
        return Answer({"card": content}, content)
    files = [str(path) for path in write_card(args.where, args.output_dir, **options)]
    return Answer({"files": files}, f"Written: {', '.join(files)}")


def _data(args: argparse.Namespace) -> DataArguments:
    names = [part.name for part in fields(DataArguments)]
    return DataArguments(**{name: value for name, value in vars(args).items() if name in names})


def _as_data(lineage: Lineage) -> dict[str, Any]:
    """A lineage as plain data: the records, each with its `place`."""
    records = [
        record.to_dict() | {"place": location}
        for record, location in zip(lineage.records, lineage.locations, strict=True)
    ]
    ensemble = records.pop() if lineage.ensemble else None
    return {"family": lineage.family, "generations": records, "ensemble": ensemble}


def _sizes(requested: "Reproduction") -> Answer:
    """The networks of a table, their parameters beside the paper's."""
    from ban_hf.jobs.reproduction import column_of
    from ban_hf.reports.tables import network_name, network_sizes, notes, size_table

    rows, sizes, table = [requested.row(name) for name in requested.rows], [], requested.table
    for row in rows:
        columns = []
        for name in requested.columns:
            job = requested.cells[row.name, name, requested.seeds[0]]
            if (network := job.arguments.get("network")) is not None:
                told = network_name(network["name"], network["args"])
                columns.append((column_of(name, table.columns[name]), (told,)))
        sizes += network_sizes(row, columns)
    heading = f"network at the budget `{table.budget}`"
    text = [f"## {table.spec['source']}", size_table([heading], sizes)]
    text.append(notes(table.spec.get("note"), rows))
    data = {"networks": [asdict(size) for size in sizes]}
    return Answer(data, "\n\n".join(part for part in text if part))


def _write_cards(requested: "Reproduction") -> None:
    """Write the card of each network of the first seed, `cards/ROW/COLUMN.md`.

    Ensembles have none, since they are measured and not saved; nor have networks whose weights, or
    whose teachers' weights, were deleted: results are kept without them. The same jobs give the
    same cards, however often they were killed: times are left out.
    """
    from ban_hf.jobs.job import in_order
    from ban_hf.jobs.reproduction import TASKS
    from ban_hf.reports.model_card import render_card

    shutil.rmtree(requested.folder / "cards", ignore_errors=True)
    for (row, column, seed), job in requested.finished_cells.items():
        folders = [requested.home / each.folder for each in in_order([job])]
        has_records = all((folder / RECORD).is_file() for folder in folders)
        if job.members or seed != requested.seeds[0] or not has_records:
            continue
        timeless = [Record.read(folder).to_dict() | {"created": None} for folder in folders]
        for record in timeless:
            record["training"].pop("seconds", None)
        ours = "auto_map" in read_json(folders[-1] / "config.json")
        card = render_card(
            timeless[-1],
            family=timeless,
            pipeline_tag=TASKS[job.arguments["task"]],
            remote_code=ours,
            own_class=ours,
        )
        path = requested.folder / "cards" / row / f"{column}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        card.save(path)
