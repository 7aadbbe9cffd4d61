"""What the commands of `ban-hf` do: each takes its arguments and gives an `Answer`."""

import argparse
import shlex
import sys
import textwrap
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ban_hf.cli.terminal import branch, draw_tree, measurement_table, table
from ban_hf.errors import BANError
from ban_hf.hub import cards
from ban_hf.hub import download as pulling
from ban_hf.hub import publishing as hub
from ban_hf.hub.verification import load_lineage, verify_lineage
from ban_hf.jobs.caching import TrainingData, fill_cache
from ban_hf.jobs.members import (
    DatasetArguments,
    check_savable,
    load_members,
    measure_members,
    save_ensemble,
)
from ban_hf.jobs.reproduction import Reproduction
from ban_hf.lineage.record import RECORD, Lineage, finished_generations, read_json
from ban_hf.reports.aggregate import pool
from ban_hf.reports.merging import SCHEMA, read_results
from ban_hf.reports.report import markdown_table, write_report
from ban_hf.reports.table_report import markdown, write_table_report
from ban_hf.tasks.base import normalized_weights

PROVED = (
    "Verified: the generations fall by one down to 0; each teacher and member is, by the hashes of "
    "its record and its weights, the one that its student or ensemble recorded; every file has the "
    "size and the sha256 of its record; no other weights or code lie beside them."
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
    found = load_lineage(args.where, args.revision)
    return Answer(_as_data(found), draw_tree(found, branch()))


def verify(args: argparse.Namespace) -> Answer:
    """Download everything that a lineage names, and check it."""
    found = verify_lineage(args.where, args.revision)
    rows = [
        {
            "name": record.name,
            "files": len(record.files),
            "bytes": sum(file["size"] for file in record.files),
            "place": found.places[record.generation],
        }
        for record in found.records
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
    folder = args.output_dir or Path(args.where.partition("@")[0]).name
    found = pulling.pull(args.where, folder, revision=args.revision)
    text = f"Pulled into {folder}, each file as its record says.\n{draw_tree(found, branch())}"
    return Answer({"output_dir": str(folder)} | _as_data(found), text)


def push(args: argparse.Namespace) -> Answer:
    """Publish a family or a generation."""
    folder = Path(args.folder)
    options = {"private": args.private, "license": args.license}
    if finished_generations(folder):
        if args.teacher is not None:
            raise BANError("--teacher is of a single generation; a family has its own teachers.")
        commits = hub.push_family(folder, args.repo_id, **options)
    elif (folder / RECORD).is_file():
        commits = [hub.push_generation(folder, args.repo_id, teacher=args.teacher, **options)]
    else:
        raise BANError(
            f"{folder} is no folder of a family, which has generation-0 and so on, nor of a "
            f"generation, which has a {RECORD}."
        )
    published = [{"repo_id": c.repo_id, "revision": c.revision} for c in commits]
    return Answer({"published": published}, "\n".join(f"published {commit}" for commit in commits))


def ensemble(args: argparse.Namespace) -> Answer:
    """Measure models and their ensemble on a dataset."""
    normalized_weights(args.weights, len(args.members))  # all that can be refused before the work
    data = DatasetArguments(**{f.name: getattr(args, f.name) for f in fields(DatasetArguments)})
    members = load_members(args.members)
    if args.output_dir is not None:
        check_savable(members, args.output_dir)
    measured = measure_members(members, data, args.weights)
    text = measurement_table(measured)
    if args.output_dir is not None:
        save_ensemble(members, args.output_dir, args.weights)
        text += f"\nThe ensemble is in {args.output_dir}."
    return Answer(measured | {"output_dir": args.output_dir}, text)


def cache(args: argparse.Namespace) -> Answer:
    """Fill a teacher's cache ahead of its students."""
    data = TrainingData(**{f.name: getattr(args, f.name) for f in fields(TrainingData)})
    options = {"seed": args.seed, "epochs": args.epochs, "dtype": args.dtype}
    filled = fill_cache(args.teacher, args.folder, data, **options)
    text = (
        f"{filled['folder']} holds what {args.teacher} says of {filled['items']:,} items, in "
        f"{filled['files']} files of an epoch each, {filled['bytes']:,} bytes. Students read it "
        f"with --teacher {args.teacher} --teacher_cache {filled['folder']}."
    )
    return Answer(filled, textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False))


def card(args: argparse.Namespace) -> Answer:
    """Render a model card again."""
    options = {"revision": args.revision, "license": args.license}
    if args.output_dir is None:
        content = str(cards.card(args.where, **options))
        return Answer({"card": content}, content)
    files = [str(path) for path in cards.write_card(args.where, args.output_dir, **options)]
    return Answer({"files": files}, f"Written: {', '.join(files)}")


def reproduce(args: argparse.Namespace) -> Answer:
    """Train what a table of the paper needs, and report."""
    for name, least in (("seeds", 1), ("first_seed", 0), ("workers", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise BANError(f"{name}={value} must be at least {least}.")
    asked = Reproduction(
        args.table,
        args.budget,
        rows=args.rows or (),
        columns=args.columns or (),
        seeds=range(args.first_seed, args.first_seed + args.seeds),
        output_dir=args.output_dir,
    )
    if args.sizes:
        lines, text = asked.sizes()
        return Answer({"networks": lines}, text)
    missing = asked.missing
    line = (
        f"{asked.table.name} at the budget {args.budget}: {len(asked.jobs)} jobs, of which "
        f"{len(asked.jobs) - len(missing)} are done, into {args.output_dir}. {asked.table.says}."
    )
    plan = {"jobs": [job.name for job in asked.jobs], "missing": [job.name for job in missing]}
    if args.plan:
        return Answer(plan, "\n".join([textwrap.fill(line, 79), *plan["missing"]]))
    print(textwrap.fill(line, 79), file=sys.stderr)
    results, text = asked.run(shlex.join(["ban-hf", *args.words]), args.workers)
    return Answer(dict(results), f"{text}\nThe report, with pictures: {asked.folder}")


def report(args: argparse.Namespace) -> Answer:
    """Report one or more results as one table."""
    kinds = [read_json(Path(path)).get("schema") for path in args.results]
    if all(kind == SCHEMA for kind in kinds):
        results = read_results(args.results)
        if args.output_dir is None:
            return Answer(results, markdown(results))
        return Answer(results, write_table_report(results, args.output_dir))
    if any(kind is not None for kind in kinds):
        raise BANError(
            f"results have schemas {', '.join(sorted(set(map(str, kinds))))}: give those of tables "
            f"({SCHEMA}, of ban-hf reproduce), or those of families (without, of a recipe)."
        )
    results = pool([Path(path) for path in args.results])
    if args.output_dir is not None:
        write_report(results, args.output_dir)
    return Answer(results, markdown_table(results))


def _as_data(lineage: Lineage) -> dict[str, Any]:
    """A lineage as plain data: the records, each with its `place`."""
    records = [
        asdict(record) | {"place": lineage.places[record.generation]} for record in lineage.records
    ]
    count = len(lineage.generations)
    return {
        "family": lineage.family,
        "generations": records[:count],
        "ensemble": records[count] if lineage.ensemble else None,
    }
