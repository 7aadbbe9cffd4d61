"""Which classes of transformers are verified.

`python tests/heads_table.py` writes docs/heads.md, in about two minutes.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import tiny_heads
import torch
import transformers

from ban_hf.errors import BANError
from ban_hf.tasks.auto import task_of
from ban_hf.tasks.losses import check_label_loss

TABLE = Path(__file__).parents[1] / "docs" / "heads.md"
COLUMNS = ("class", "model type", "task", "verdict", "why")
VERDICTS = ("verified", "refused", "no loss", "not buildable")
WITH_IMAGES = ("image-text-to-text", "any-to-any")
TEXT_INPUTS = {"input_ids", "attention_mask", "labels"}
TEXT = """\
# Heads

Every class of the Auto classes below, in transformers {version}. `python tests/heads_table.py`
writes this page.

A class is **verified** if a tiny model of it, with weights drawn at random, reports for a tiny
batch with labels the loss that `ban_hf` computes from its logits. Training makes the same check on
its first batch. A class is **refused** if training stops there with an error. One with **no loss**
takes no labels, or returns no loss for them: it can teach and be taught, but there is nothing to
compare. One that is **not buildable** was not tried, since there is no tiny model or batch of it
here.

{counts}

Of the {buildable} classes that are buildable {share:.1f} % are verified.

{rows}
"""


class Row(NamedTuple):
    """What is known of a class."""

    head: str
    model_type: str
    task: str
    verdict: str
    why: str = ""


def row(head: str) -> Row:
    """Build a class, and check its loss."""
    task, model_type = tiny_heads.classes()[head]
    if head in tiny_heads.NOT_BUILDABLE:
        return Row(head, model_type, task, "not buildable", tiny_heads.NOT_BUILDABLE[head])
    auto_class = tiny_heads.AUTO_CLASSES[task]
    model = tiny_heads.tiny_model(auto_class, head)
    inputs = tiny_heads.batch(model, auto_class)
    note = tiny_heads.NOTES.get(head, "")
    if not note and task in WITH_IMAGES and set(inputs) <= TEXT_INPUTS:
        note = "with texts only"
    try:
        found = task_of(model)
        with torch.no_grad():
            if model(**inputs).get("loss") is None:
                return Row(head, model_type, found.name, "no loss", note)
        classes = check_label_loss(found, model, inputs)
    except BANError as error:
        return Row(head, model_type, task, "refused", note or _first_sentence(str(error)))
    assert classes is not None, f"{head} was not checked"
    return Row(head, model_type, found.name, "verified", note)


def _first_sentence(text: str) -> str:
    """The first sentence of an error, without numbers, which differ between machines."""
    return re.sub(r"\d+\.\d+(e[+-]\d+)?", "…", text.split(". ")[0].split(": ")[0]).rstrip(".")


def table(rows: list[Row]) -> str:
    """The page."""
    counts = Counter((one.task, one.verdict) for one in rows)
    totals = Counter(one.verdict for one in rows)
    tasks = [*dict.fromkeys(one.task for one in rows)]
    buildable = len(rows) - totals["not buildable"]
    return TEXT.format(
        version=transformers.__version__,
        counts=_markdown(
            ("task", *VERDICTS),
            [(task, *(counts[task, verdict] or "" for verdict in VERDICTS)) for task in tasks]
            + [("all", *(totals[verdict] for verdict in VERDICTS))],
        ),
        buildable=buildable,
        share=100 * totals["verified"] / buildable,
        rows=_markdown(COLUMNS, rows),
    )


def _markdown(head: tuple[str, ...], rows: list) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def written() -> dict[str, Row]:
    """The rows of the page, by class."""
    lines = TABLE.read_text().partition(f"| {' | '.join(COLUMNS)} |\n")[2].splitlines()[1:]
    rows = [Row(*(cell.strip() for cell in line.split("|")[1:-1])) for line in lines]
    return {one.head: one for one in rows}


def main() -> None:
    """Write the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # several would make sums depend on the machine
    rows = []
    for head in tiny_heads.classes():
        print(head, file=sys.stderr)
        rows.append(row(head))
    rows.sort(key=lambda one: (list(tiny_heads.AUTO_CLASSES).index(one.task), one.head))
    TABLE.write_text(table(rows))


if __name__ == "__main__":
    main()
