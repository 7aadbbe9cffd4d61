"""The model card of a generation or an ensemble, rendered from lineage records alone.

The words are in the Jinja templates of `model_cards/` (in an installed package: the resources of
`ban_hf.model_cards`), the numbers in the records; nothing here reads a model or the network.
"""

import ast
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import CATALOG, Metric, counted, data_name, finite, method_of, source_of
from ban_hf.lineage.results import Column, Results, results_of_records
from ban_hf.reports.tables import MISSING, cell, escaped

if TYPE_CHECKING:
    import jinja2

Fields = Mapping[str, Any]  # a record, or a part of one
Named = TypeVar("Named", Fields, str)

NETWORKS = ("labels", "student")  # kinds of columns
METRIC_LABELS = {  # a metric that is not here goes by its own name
    "error": "Error (%)",
    "nll": "Negative log-likelihood",
    "ece": "Expected calibration error (%)",
    "perplexity": "Perplexity",
    "above_entropy": "Nats per word above the entropy",
    "loss": "Label cross-entropy",
    "teacher_agreement": "Agreement with the teacher (%)",
    "teacher_kl": "KL divergence from the teacher",
}
TRAINING_ARGUMENTS = (
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps optim "
    "optim_args learning_rate lr_scheduler_type lr_milestones lr_gamma warmup_steps weight_decay "
    "label_smoothing_factor max_grad_norm bf16 fp16 load_best_model_at_end".split()
)
HUB = "https://huggingface.co"


def render_card(
    lineage: Fields,
    *,
    family: Sequence[Fields] = (),
    repo_id: str | None = None,
    license: str | None = None,
    pipeline_tag: str = "image-classification",
    picture: str | None = None,
    results: Results | None = None,
    remote_code: bool = False,
    own_class: bool = False,
    num_labels: int | None = None,
) -> ModelCard:
    """Render the card of a generation or of an ensemble.

    Args:
        lineage: the contents of its `lineage.json`.
        family: the records of its family, in order and up to this one; of an ensemble all
            generations. Each may also have a `place`: its `repo_id`, and the `revision` that it is
            published in.
        repo_id: where it is, or will be, published; without one the card shows a local path.
        license: of the weights, as the Hub writes it; the card says so if there is none.
        pipeline_tag: the task, a key of `CATALOG`.
        picture: name of the plot's file in the repository, if it is there.
        results: of the run, for its ensembles and controls; by default those of the records.
        remote_code: whether the repository holds its modelling code (`auto_map` in its config).
        own_class: whether the class is one of ban_hf's, and not transformers' or timm's.
        num_labels: classes of a classifier that is an adapter, whose base has to be told.

    Raises:
        ValueError: for a kind that has no template, a task that has no Auto class, a family that
            does not end with this generation, results of several runs, or a record that lacks
            what a card tells.
    """
    _check(lineage, family, pipeline_tag, results)
    files = [file["path"] for file in lineage.get("files", [])]
    teacher = _only_teacher(lineage, family)
    facts = {
        "lineage": lineage,
        "repo_id": repo_id,
        "load_from": repo_id or f"path/to/{_name(lineage)}",
        "license": license,
        "task": pipeline_tag,
        "about": CATALOG[pipeline_tag],
        "auto_class": CATALOG[pipeline_tag].auto_class,
        "words": CATALOG[pipeline_tag].is_of_words,
        "picture": picture,
        "remote_code": remote_code,
        "own_class": own_class,
        "adapter": lineage["architecture"].get("adapter"),
        "num_labels": num_labels,
        "code": [name for name in files if name.endswith(".py")],
        "reads": bool({"preprocessor_config.json", "tokenizer_config.json"} & set(files)),
        "table": _table(lineage, family, _results(lineage, family, results)),
        "chain": _chain(lineage, family),
        "method": method_of(lineage.get("objective")),
        "objective": _objective(lineage),
        "arguments": _training_arguments(lineage),
        "data": source_of(lineage),
        "data_name": data_name(lineage),
        "train": lineage["data"].get("train", {}),
        "teachers": _teachers(lineage),
        "teacher": teacher,
        "same_network": teacher is not None and teacher["architecture"] == lineage["architecture"],
        "error": next((m for m in _metrics(lineage) if _is_error_of_test(m)), None),
        "same_test": len({str(r["data"].get("test")) for r in (*family, lineage)}) == 1,
    }
    data = _metadata(lineage, repo_id, license, pipeline_tag)
    body = _rendered(f"{lineage['kind']}.md", facts)
    body = re.sub(r"\n{3,}", "\n\n", body)  # the gaps that parts leave which say nothing
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _check(
    lineage: Fields, family: Sequence[Fields], pipeline_tag: str, results: Results | None
) -> None:
    kind = lineage["kind"]
    if kind not in ("generation", "ensemble"):
        raise BANError(f"kind={kind!r} has no card; a lineage is a generation or an ensemble.")
    if pipeline_tag not in CATALOG:
        raise BANError(f"pipeline_tag={pipeline_tag!r} must be one of {', '.join(CATALOG)}.")
    numbers = [record["generation"] for record in family]
    if kind == "generation" and numbers and numbers[-1] != lineage["generation"]:
        raise BANError(
            f"family has the generations {numbers}: give those up to this one, generation "
            f"{lineage['generation']}, which comes last."
        )
    if results is not None and len(results.seeds) > 1:
        raise BANError(
            "results are of several runs, but a card tells of the networks of one: give the "
            "results.json of that run."
        )


def _metadata(
    lineage: Fields, repo_id: str | None, license: str | None, pipeline_tag: str
) -> ModelCardData:
    name, ensemble = data_name(lineage), lineage["kind"] == "ensemble"
    sources = lineage["members"] if ensemble else _teachers(lineage)
    base_models = [source["repo_id"] for source in sources if source.get("repo_id")]
    relation = "merge" if ensemble else "finetune"
    adapter = lineage["architecture"].get("adapter")
    if adapter is not None:  # what the Hub shows as its base; the text names its teacher
        base_models = [adapter["base"]] if adapter.get("base_revision") else []
        relation = "adapter"
    position = "ensemble" if ensemble else f"generation-{lineage['generation']}"
    return ModelCardData(
        base_model=(base_models if ensemble or len(base_models) > 1 else "".join(base_models))
        or None,
        datasets=[name] if name and "/" in name else None,  # others are local, or built in
        eval_results=_eval_results(lineage, pipeline_tag),
        library_name="transformers" if adapter is None else "peft",
        license=license,
        metrics=list(dict.fromkeys(metric["name"] for metric in _metrics(lineage))) or None,
        model_name=repo_id.split("/")[-1] if repo_id else _name(lineage),
        pipeline_tag=CATALOG[pipeline_tag].pipeline_tag,
        tags=["ban_hf", "born-again-networks", "knowledge-distillation", position],
        base_model_relation=relation if base_models else None,
    )


def _eval_results(lineage: Fields, task: str) -> list[EvalResult] | None:
    data, name = source_of(lineage), data_name(lineage)
    if not name or not _metrics(lineage):
        return None  # a result of unknown data says nothing, and an empty list is no model-index
    return [
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=name,
            dataset_config=data.get("config"),
            dataset_split=metric["split"],
            dataset_revision=data.get("revision"),
            metric_type=metric["name"],
            metric_name=f"{METRIC_LABELS.get(metric['name'], metric['name'])}, {metric['split']}",
            metric_value=metric["value"],
        )
        for metric in _metrics(lineage)
    ]


def _metrics(lineage: Fields) -> list[Fields]:
    """The finite metrics, less the loss where the same number is there as `nll`."""
    known = [metric for metric in lineage["metrics"] if finite(metric["value"]) is not None]
    names = {metric["name"] for metric in known}
    return [metric for metric in known if not (metric["name"] == "loss" and "nll" in names)]


def _name(lineage: Fields) -> str:
    if lineage["kind"] == "ensemble":
        return str(lineage["family"])
    return f"{lineage['family']}-gen{lineage['generation']}"


def _results(lineage: Fields, family: Sequence[Fields], results: Results | None) -> Results:
    """What the table shows; it has a row of this very one in any case."""
    if lineage["kind"] == "generation":
        return results or results_of_records(family or [lineage])
    own = results_of_records(family, lineage)
    if results is None:
        return own
    if not family or any(_is_this(column, lineage) for column in results.columns):
        return results
    column, entry = own.columns[-1], own.entries[-1]
    columns = sorted([*results.columns, column], key=lambda column: column.kind == "control")
    return replace(results, columns=tuple(columns), entries=(*results.entries, entry))


def _is_this(column: Column, lineage: Fields) -> bool:
    """Whether a column is of the network or the ensemble of a record."""
    if lineage["kind"] == "generation":
        return column.kind in NETWORKS and column.generation == lineage["generation"]
    numbers = [str(member["generation"]) for member in lineage["members"]]
    return column.kind == "ensemble" and column.name == f"ensemble-{'-'.join(numbers)}"


def _table(lineage: Fields, family: Sequence[Fields], results: Results) -> dict[str, Any]:
    """The family's results in Markdown, a row each, this one's in bold, and what they are."""
    entries = {entry.column: entry for entry in results.entries}
    others = [m["name"] for m in _metrics(lineage) if m["split"] == "test"]
    named = METRIC_LABELS.keys() | {metric.name for metric in results.measure.metrics}
    metrics = [
        *results.measure.metrics,
        *(Metric(name, f"test {name}", "", 4) for name in others if name not in named),
    ]
    known = results.entries
    metrics = [m for m in metrics if any(entry.value(m.name) is not None for entry in known)]
    agreement = any(finite(entry.teacher_agreement) is not None for entry in known)
    places, methods = _places(lineage, family), _methods(lineage, family)
    headings = ["network", "learned from", *(_heading(metric, lineage) for metric in metrics)]
    headings += ["agreement with its teacher %"] * agreement
    lines = [headings, ["---", "---", *["---:"] * (len(headings) - 2)]]
    seen: Counter[int | None] = Counter()
    for column in results.columns:
        entry, is_this = entries.get(column.name), _is_this(column, lineage)
        place, learned_from = None, "labels" if column.kind == "control" else MISSING
        if column.kind in NETWORKS:  # teachers of one student may be of one generation
            place = _nth(places.get(column.generation, []), seen[column.generation])
            method = _nth(methods.get(column.generation, []), seen[column.generation])
            learned_from = method or MISSING
            seen[column.generation] += 1
        name = _row_name(column, None if is_this else place)
        cells = [f"{name} (this one)" if is_this else name, learned_from]
        values = [entry.value(metric.name) if entry else None for metric in metrics]
        cells += [cell(value, m.digits) for value, m in zip(values, metrics, strict=True)]
        cells += [cell(finite(entry.teacher_agreement) if entry else None, 2)] * agreement
        lines.append([f"**{text}**" if is_this and text != MISSING else text for text in cells])
    sizes = (entry.test.get("n") for entry in known)
    return {
        "text": "\n".join(f"| {' | '.join(line)} |" for line in lines),
        "metrics": [metric.name for metric in metrics],
        "agreement": agreement,
        "measure": results.measure,
        "n": next((int(n) for n in sizes if n), None),
        "controls": any(column.kind == "control" for column in results.columns),
    }


def _nth(alike: Sequence[Named], at: int) -> Named | None:
    """That of a network by its number among those of its generation; of further ones the last."""
    return alike[min(at, len(alike) - 1)] if alike else None


def _heading(metric: Metric, lineage: Fields) -> str:
    """With an arrow to where it is better: up only where the record says so."""
    higher = {m["name"] for m in lineage["metrics"] if m.get("higher_is_better")}
    return f"{metric.heading} {'↑' if metric.name in higher else '↓'}"


def _row_name(column: Column, place: Fields | None) -> str:
    """A generation linked where it is published, an ensemble by its members, a control by name."""
    if column.kind == "ensemble":
        members = column.name.rpartition("ensemble-")[2].split("-")
        return f"ensemble of {_in_words([*map(int, members)])}"
    if column.kind == "control":
        return f"control: {escaped(column.heading)}"
    return _link(f"generation {column.generation}", place)


def _in_words(numbers: Sequence[int]) -> str:
    return f"generation{'s' if len(numbers) > 1 else ''} {counted(numbers)}"


def _teachers(lineage: Fields) -> list[Fields]:
    """References to its teachers: one, several, or none."""
    teacher = lineage["teacher"]
    if not teacher:
        return []
    return [teacher] if isinstance(teacher, Mapping) else [*teacher]


def _only_teacher(lineage: Fields, family: Sequence[Fields]) -> Fields | None:
    """The record of the only teacher, if it is at hand."""
    numbers = [teacher["generation"] for teacher in _teachers(lineage)]
    return next((record for record in family if [record["generation"]] == numbers), None)


def _places(lineage: Fields, family: Sequence[Fields]) -> dict[int | None, list[Fields]]:
    """Where the networks of each generation are that a record names, or that have a place."""
    named: dict[int | None, list[Fields]] = defaultdict(list)
    placed: dict[int | None, list[Fields]] = defaultdict(list)
    for record in [lineage, *family]:
        for source in (*record["members"], *_teachers(record)):
            if source not in named[source["generation"]]:
                named[source["generation"]].append(source)
    for record in family:
        if record.get("place"):
            placed[record["generation"]].append(record["place"])
    return {**named, **placed}


def _methods(lineage: Fields, family: Sequence[Fields]) -> dict[int | None, list[str]]:
    """How the networks of each generation learned."""
    methods: dict[int | None, list[str]] = defaultdict(list)
    for record in family or ([lineage] if lineage["kind"] == "generation" else []):
        methods[record["generation"]].append(method_of(record.get("objective")))
    return methods


def _chain(lineage: Fields, family: Sequence[Fields]) -> list[Fields]:
    """Who came before, newest first: `generation`, `reference`, `method` (None: not known)."""
    places, methods = _places(lineage, family), _methods(lineage, family)
    numbers = {number for number in (*places, *methods) if number is not None}
    links: list[Fields] = []
    for number in sorted(numbers - {lineage["generation"]}, reverse=True):
        alike = {*methods.get(number, [])}
        method = alike.pop() if len(alike) == 1 else None
        for place in places.get(number, [None]):
            reference = _reference(number, place)
            links.append({"generation": number, "method": method, "reference": reference})
    return links


def _link(text: str, place: Fields | None) -> str:
    """A text, linked to its repository at its commit where it has them."""
    if not place or not place.get("repo_id"):
        return text
    revision = place.get("revision")
    return f"[{text}]({HUB}/{place['repo_id']}{f'/tree/{revision}' if revision else ''})"


def _reference(generation: int, place: Fields | None) -> str:
    """A repository at its commit, linked, or a local folder: its name, and of whose if not ours."""
    if not place or not place.get("repo_id"):
        path = (place or {}).get("path") or f"generation-{generation}"
        named = [part for part in PurePosixPath(path).parts if part != ".."]
        return f"in `{'/'.join(named[-2:])}`"
    revision = place.get("revision")
    return _link(place["repo_id"] + (f"@{revision[:7]}" if revision else ""), place)


def _is_error_of_test(metric: Fields) -> bool:
    """Whether it is an error that has a standard error, since its number of items is known."""
    return (metric["name"], metric["split"]) == ("error", "test") and bool(metric.get("n"))


def _objective(lineage: Fields) -> dict[str, Any] | None:
    """The objective with what its docstring says of it; None of labels alone."""
    objective = lineage.get("objective")
    if not objective:
        return None
    text = _docstrings().get(objective["name"], "")  # a later version may have others
    parts = re.findall(r"^([A-Z]\w+): (.+?)(?=\n[A-Z]\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    activation = objective.get("activation", "softmax")
    label_loss = "label squared error" if activation == "identity" else "label cross-entropy"
    terms = {
        objective["name"]: objective["teacher_weight"],
        label_loss: objective["label_weight"],
    }
    loss = " + ".join(t if w == 1 else f"{w:g} * {t}" for t, w in terms.items() if w)
    unknown = dict.fromkeys(("formula", "reference"), "not known to this version of ban_hf")
    found = {label.lower(): " ".join(body.split()) for label, body in parts}
    if activation in found:
        found["formula"] = found[activation]
    says = {
        "activation": activation,
        "summary": text.partition("\n")[0],
        "loss": loss,
    }
    return {**objective, **unknown, **says, **found}


def _training_arguments(lineage: Fields) -> dict[str, Any]:
    """The arguments that a reader asks for, less those that are off and those without effect."""
    given = lineage["training"].get("arguments", {})
    shown = {key: given[key] for key in TRAINING_ARGUMENTS if given.get(key)}
    # The milestones take the scheduler's place, and gamma is theirs.
    shown.pop("lr_scheduler_type" if "lr_milestones" in shown else "lr_gamma", None)
    without_effect = {"max_steps": -1, "gradient_accumulation_steps": 1}
    return {key: value for key, value in shown.items() if without_effect.get(key) != value}


@functools.cache
def _docstrings() -> dict[str, str]:
    """What the module of objectives says of each; read as text, since importing it loads torch."""
    source = resources.files("ban_hf").joinpath("objectives.py").read_text(encoding="utf-8")
    functions = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    return {function.name: ast.get_docstring(function) or "" for function in functions}


def _rendered(name: str, facts: Fields) -> str:
    """A template with the facts filled in.

    Raises:
        BANError: if the record lacks what the template reads.
    """
    import jinja2  # where a card is rendered, and nowhere else

    try:
        return _environment().get_template(name).render(facts)
    except jinja2.UndefinedError as error:
        raise BANError(f"the record lacks what a card tells: {error}.") from error


@functools.cache  # templates are compiled once
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ban_hf.model_cards", "."),
        undefined=jinja2.StrictUndefined,  # a missing fact is an error, not a gap in the card
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["reference"] = lambda source: _reference(source["generation"], source)
    environment.filters["standard_error"] = _standard_error
    environment.filters["in_words"] = _in_words
    environment.filters["count"] = "{:,}".format
    return environment


def _standard_error(error: Fields) -> float:
    """Of a share of the test set, in percent: what its size alone implies."""
    return math.sqrt(error["value"] * (100 - error["value"]) / error["n"])
