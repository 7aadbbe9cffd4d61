"""The model card of a generation or an ensemble, rendered from its lineage alone.

The words are in the Jinja templates of `model_cards/` (in an installed package: the resources of
`ban_hf.model_cards`), the numbers in the lineage; nothing here reads a model or the network.
"""

import inspect
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ban_hf.objectives import OBJECTIVES

AUTO_CLASSES = {
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
}
METRIC_LABELS = {  # the metrics that a card shows
    "error": "Error (%)",
    "nll": "Negative log-likelihood",
    "ece": "Expected calibration error (%)",
    "perplexity": "Perplexity",
    "teacher_agreement": "Agreement with the teacher (%)",
    "teacher_kl": "KL divergence from the teacher",
}
TRAINING_ARGUMENTS = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "optim_args",
    "learning_rate",
    "lr_scheduler_type",
    "lr_milestones",
    "lr_gamma",
    "warmup_steps",
    "weight_decay",
    "label_smoothing_factor",
    "max_grad_norm",
    "bf16",
    "fp16",
)


def render_card(
    lineage: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    license: str = "apache-2.0",
    pipeline_tag: str = "image-classification",
) -> ModelCard:
    """Render the card of a generation or of an ensemble.

    Args:
        lineage: the contents of its `lineage.json`.
        repo_id: where it is, or will be, published; without one the card shows a local path.
        license: identifier of the licence of the weights, as the Hub writes it.
        pipeline_tag: the task, one of `AUTO_CLASSES`.

    Returns:
        The card; its `data` is the metadata, `save(path)` writes it.

    Raises:
        ValueError: for a kind that has no template, or a task that has no Auto class.
    """
    kind = lineage["kind"]
    if kind not in ("generation", "ensemble"):
        raise ValueError(f"kind={kind!r} has no card; a lineage is a generation or an ensemble.")
    if pipeline_tag not in AUTO_CLASSES:
        raise ValueError(f"pipeline_tag={pipeline_tag!r} must be one of {', '.join(AUTO_CLASSES)}.")
    data = _metadata(lineage, repo_id, license, pipeline_tag)
    body = (
        _environment()
        .get_template(f"{kind}.md")
        .render(
            lineage=lineage,
            objective=_objective(lineage),
            arguments=_training_arguments(lineage),
            metrics=_metrics(lineage),
            metric_labels=METRIC_LABELS,
            data=_source(lineage),
            data_name=_data_name(_source(lineage)),
            load_from=repo_id or f"path/to/{_name(lineage)}",
            auto_class=AUTO_CLASSES[pipeline_tag],
        )
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _metadata(
    lineage: Mapping[str, Any], repo_id: str | None, license: str, pipeline_tag: str
) -> ModelCardData:
    data = _source(lineage)
    ensemble = lineage["kind"] == "ensemble"
    sources = lineage["members"] if ensemble else [lineage["teacher"]]
    base_models = [source["repo_id"] for source in sources if source and source.get("repo_id")]
    relation = "merge" if ensemble else "finetune"
    position = "ensemble" if ensemble else f"generation-{lineage['generation']}"
    return ModelCardData(
        base_model=(base_models if ensemble else "".join(base_models)) or None,
        # A revision is what tells a dataset of the Hub from a local one.
        datasets=[data["id"]] if data.get("revision") else None,
        eval_results=_eval_results(lineage, pipeline_tag),
        library_name="transformers",
        license=license,
        metrics=list(dict.fromkeys(metric["name"] for metric in _metrics(lineage))) or None,
        model_name=repo_id.split("/")[-1] if repo_id else _name(lineage),
        pipeline_tag=pipeline_tag,
        tags=["ban_hf", "born-again-networks", "knowledge-distillation", position],
        base_model_relation=relation if base_models else None,
    )


def _eval_results(lineage: Mapping[str, Any], task: str) -> list[EvalResult] | None:
    data = _source(lineage)
    name = _data_name(data)
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
            metric_name=f"{METRIC_LABELS[metric['name']]}, {metric['split']}",
            metric_value=metric["value"],
        )
        for metric in _metrics(lineage)
    ]


def _metrics(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [metric for metric in lineage["metrics"] if metric["name"] in METRIC_LABELS]


def _name(lineage: Mapping[str, Any]) -> str:
    if lineage["kind"] == "ensemble":
        return f"{lineage['family']}"
    return f"{lineage['family']}-gen{lineage['generation']}"


def _source(lineage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the data came from: `id`, `config`, `revision`, as far as a run recorded it."""
    source: Mapping[str, Any] = lineage["data"].get("source", lineage["data"])
    return source


def _data_name(data: Mapping[str, Any]) -> str | None:
    """A Hub id as it is; of a local path only the last part, which gives no machine away."""
    data_id = data.get("id")
    if not data_id:
        return None
    local = data_id.startswith(("/", ".", "~")) or data_id.count("/") > 1
    return PurePosixPath(data_id).name if local else data_id


def _objective(lineage: Mapping[str, Any]) -> dict[str, Any] | None:
    """The objective of the lineage with what its docstring says; None where labels alone taught."""
    objective = lineage.get("objective")
    if not objective or lineage.get("generation") == 0:
        return None
    text = inspect.getdoc(OBJECTIVES[objective["name"]]) or ""
    parts = re.findall(r"^([A-Z]\w+): (.+?)(?=\n[A-Z]\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    return {**objective, "summary": text.partition("\n")[0]} | {
        label.lower(): " ".join(body.split()) for label, body in parts
    }


def _training_arguments(lineage: Mapping[str, Any]) -> dict[str, Any]:
    given = lineage["training"].get("arguments", {})
    shown = {key: given[key] for key in TRAINING_ARGUMENTS if given.get(key) not in (None, "")}
    if "lr_milestones" in shown:
        shown.pop("lr_scheduler_type", None)  # the milestones take its place
    return shown


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,  # a missing fact is an error, not a gap in the card
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "reference": _reference,
        "metric_value": _metric_value,
    }
    return environment


def _template(name: str) -> str:
    return resources.files("ban_hf.model_cards").joinpath(name).read_text(encoding="utf-8")


def _reference(source: Mapping[str, Any]) -> str:
    """A teacher or member, linked where it is published."""
    if not source.get("repo_id"):
        return f"`generation-{source['generation']}`"
    repo_id, revision = source["repo_id"], source["revision"]
    return f"[{repo_id}](https://huggingface.co/{repo_id}/tree/{revision})"


def _metric_value(metric: Mapping[str, Any]) -> str:
    """The value; for an error also the standard error that the number of items implies."""
    value, n = metric["value"], metric.get("n")
    if metric["name"] == "error" and n:
        return f"{value:.2f} ± {math.sqrt(value * (100 - value) / n):.2f}"
    return f"{value:.4g}"
