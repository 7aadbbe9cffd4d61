"""What the commands of `ban-hf` do: each takes its arguments and returns an `Answer`.

Heavy libraries are imported by the commands that need them: a lineage is read, verified, pulled,
pushed and reported without torch.
"""

import argparse
import shlex
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ban_hf.cli.terminal import branch, draw_tree, measurement_table, table
from ban_hf.data.arguments import DataArguments
from ban_hf.errors import BANError
from ban_hf.lineage.family import Lineage, finished_generations
from ban_hf.lineage.files import read_json
from ban_hf.lineage.record import RECORD, Record

if TYPE_CHECKING:
    from ban_hf.jobs.reproduction import Reproduction

PROVED = (
    "Verified: the generations fall by one down to 0; each teacher and member is, by the hashes of "
    "its record and its weights, the one that its student or ensemble recorded; every file has the "
    "size and the sha256 of its record; no other weights or code are beside them."
)
NOT_PROVED = (
    "Not proved: who made them, and that the metrics are true. Hashes prove integrity, not "
    "authorship."
)


@dataclass(frozen=True)
class Answer:
    """What a command found, as data for `--json` and as text."""

    data: dict[str, Any]
    text: str


def lineage(args: argparse.Namespace) -> Answer:
    """Draw who taught whom."""
    from ban_hf.hub.verification import load_lineage

    found = load_lineage(args.where, args.revision)
    return Answer(_as_data(found), draw_tree(found, branch()))


def verify(args: argparse.Namespace) -> Answer:
    """Download everything that a lineage names, and check it."""
    from ban_hf.hub.verification import verify_lineage

    found = verify_lineage(args.where, args.revision)
    rows: list[dict[str, Any]] = [
        {
            "name": record.name,
            "files": len(record.files),
            "bytes": sum(file.size for file in record.files),
            "place": location,
        }
        for record, location in zip(found.records, found.locations, strict=True)
    ]
    lines = [
        [row["name"], f"{row['files']} files", f"{row['bytes']:,} bytes", row["place"]]
        for row in rows
    ]
    data = {"verified": True, "family": found.family, "places": rows}
    proved = {"proved": PROVED, "not_proved": NOT_PROVED}
    prose = "\n".join(textwrap.fill(text, 79) for text in proved.values())
    return Answer(data | proved, f"{table(lines)}\n{prose}")


def pull(args: argparse.Namespace) -> Answer:
    """Download a family or a generation."""
    from ban_hf.hub.download import pull

    folder = args.output_dir or Path(args.where.partition("@")[0]).name
    found = pull(args.where, folder, revision=args.revision)
    text = f"Pulled into {folder}, each file as its record says.\n{draw_tree(found, branch())}"
    return Answer({"output_dir": str(folder)} | _as_data(found), text)


def push(args: argparse.Namespace) -> Answer:
    """Publish a family or a generation."""
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


def ensemble(args: argparse.Namespace) -> Answer:
    """Measure models and their ensemble on a dataset."""
    from ban_hf.cli import models
    from ban_hf.tasks.base import normalized_weights

    normalized_weights(args.weights, len(args.members))  # all that can be refused before the work
    members = models.load_members(args.members)
    if args.output_dir is not None:
        models.check_savable(members, args.output_dir)
    data = _data_arguments(args)
    measured = models.measure_members(members, data, args.weights, args.batch_size)
    text = measurement_table(measured)
    if args.output_dir is not None:
        models.save_ensemble(members, args.output_dir, args.weights)
        text += f"\nThe ensemble is in {args.output_dir}."
    return Answer(measured | {"output_dir": args.output_dir}, text)


def cache(args: argparse.Namespace) -> Answer:
    """Fill a teacher's cache ahead of its students."""
    from ban_hf.cli.models import load_teacher
    from ban_hf.jobs.cache import check_epochs, fill_cache

    check_epochs(args.epochs)  # before anything is downloaded
    data = _data_arguments(args)
    teacher, record = load_teacher(args.teacher)
    options = {"seed": args.seed, "epochs": args.epochs, "dtype": args.dtype}
    filled = fill_cache(teacher.model, record, args.folder, data, **options)
    text = (
        f"{filled['folder']} holds the outputs of {args.teacher} for {filled['items']:,} items, in "
        f"{filled['files']} files of an epoch each, {filled['bytes']:,} bytes. Students read it "
        f"with --teacher {args.teacher} --teacher_cache {filled['folder']}."
    )
    wrapped = textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)
    return Answer({"teacher": str(teacher.location)} | filled, wrapped)


def card(args: argparse.Namespace) -> Answer:
    """Render a model card again."""
    from ban_hf.hub.publishing import card, write_card

    options = {"revision": args.revision, "license": args.license}
    if args.output_dir is None:
        content = str(card(args.where, **options))
        return Answer({"card": content}, content)
    files = [str(path) for path in write_card(args.where, args.output_dir, **options)]
    return Answer({"files": files}, f"Written: {', '.join(files)}")


def reproduce(args: argparse.Namespace) -> Answer:
    """Train what a table of the paper needs, and report."""
    from ban_hf.jobs.executor import JobsFailed
    from ban_hf.jobs.reproduction import Reproduction
    from ban_hf.reports.report import write_report

    for name, least in (("seeds", 1), ("first_seed", 0), ("workers", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise BANError(f"{name}={value} must be at least {least}.")
    requested = Reproduction(
        args.table,
        args.budget,
        rows=args.rows or (),
        columns=args.columns or (),
        seeds=range(args.first_seed, args.first_seed + args.seeds),
        output_dir=args.output_dir,
    )
    if args.sizes:
        return _sizes(requested)
    missing = requested.missing
    line = (
        f"{requested.table.name} at the budget {args.budget}: {len(requested.jobs)} jobs, of which "
        f"{len(requested.jobs) - len(missing)} are done, into {args.output_dir}. "
        f"{requested.table.says}."
    )
    plan = {
        "jobs": [job.folder for job in requested.jobs],
        "missing": [job.folder for job in missing],
    }
    if args.plan:
        return Answer(plan, "\n".join([textwrap.fill(line, 79), *plan["missing"]]))
    print(textwrap.fill(line, 79), file=sys.stderr)
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


def report(args: argparse.Namespace) -> Answer:
    """Report one or more results as one table."""
    from ban_hf.reports.reading import read_results
    from ban_hf.reports.report import report_text, write_report

    results = read_results(args.results)
    data = msgspec.to_builtins(results)
    if args.output_dir is None:
        return Answer(data, report_text(results))
    return Answer(data, write_report(results, args.output_dir))


def _sizes(requested: "Reproduction") -> Answer:
    """The networks of a table, their parameters beside the paper's."""
    from ban_hf.jobs.reproduction import column_of
    from ban_hf.reports.tables import network_name, network_sizes, notes, size_table

    rows, sizes, table = [requested.row(name) for name in requested.rows], [], requested.table
    for row in rows:
        jobs = {
            name: requested.cells[row.name, name, requested.seeds[0]] for name in requested.columns
        }
        named = (
            (column_of(name, table.columns[name]), (network_name(n["name"], n["args"]),))
            for name, job in jobs.items()
            if (n := job.arguments.get("network")) is not None
        )
        sizes += network_sizes(row, named)
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
        records = [Record.read(folder) for folder in folders]
        timeless = [record.to_dict() | {"created": None} for record in records]
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


def _data_arguments(args: argparse.Namespace) -> DataArguments:
    names = {part.name for part in fields(DataArguments)}
    return DataArguments(**{k: v for k, v in vars(args).items() if k in names})


def _as_data(lineage: Lineage) -> dict[str, Any]:
    """A lineage as plain data: the records, each with its `place`."""
    records = [
        record.to_dict() | {"place": location}
        for record, location in zip(lineage.records, lineage.locations, strict=True)
    ]
    count = len(lineage.generations)
    return {
        "family": lineage.family,
        "generations": records[:count],
        "ensemble": records[count] if lineage.ensemble else None,
    }
