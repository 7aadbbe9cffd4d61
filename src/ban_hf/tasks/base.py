"""What a head predicts: a batch and a model's outputs as items.

An *item* is one prediction: an image, a sentence, or a word of a text. A `Task` turns a batch and a
model's outputs into `Items`. The objectives, the loss of a step, evaluation, the teacher cache and
the ensemble see items only, and never the shape of a model's outputs.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import Metric
from ban_hf.lineage.catalog import TaskFacts as TaskFacts

TOKENIZER_FILE = "tokenizer_config.json"


class Output(NamedTuple):
    """A tensor of logits among a model's outputs, and the axis of its classes."""

    name: str = "logits"
    class_axis: int = -1


class Labels(NamedTuple):
    """The labels of a batch's items, and what each of them counts for."""

    values: Tensor | None  # (N,) int64, 0 where the weight is 0; None where the batch has none
    weights: Tensor  # (N,) float32; 0 for an item that does not count


class Items(NamedTuple):
    """N predictions of a batch of B rows, the same number for each row, row by row."""

    logits: Tensor  # (N, C)
    labels: Tensor | None  # (N,), as in `Labels`
    weights: Tensor  # (N,), as in `Labels`
    rows: int  # B; the items of row b are those from b N/B to (b + 1) N/B


class Task:
    """What a head predicts, and how its labels are read.

    A subclass names its `facts`. All else has a default: the logits are those of the first of
    `outputs`, at each place an item, and `labels` has the class number of each item. To teach a
    model of your own class, give an instance to `BANTrainer`:

        class WordTags(Task):
            facts = TaskFacts("word-tags", "AutoModelForTokenClassification")

    Attributes:
        facts: names and metrics.
        label_names: of a batch; a model that is run for its logits alone gets none of them.
        outputs: the logits among a model's outputs.
        one_item_a_row: whether a row of a batch is one item, so that `Trainer` itself measures the
            label loss of an evaluation without a teacher. Otherwise it is the mean over items.
        default_label_weight: `label_weight` of a sequence of such models, where none is given.
    """

    facts: TaskFacts
    label_names: tuple[str, ...] = ("labels",)
    outputs: tuple[Output, ...] = (Output(),)
    one_item_a_row: bool = False
    default_label_weight: float = 0.0

    @property
    def name(self) -> str:
        """The Hub's pipeline tag."""
        return self.facts.name

    @property
    def headline(self) -> Metric:
        """The metric that tables lead with."""
        return self.facts.headline

    # The model's side

    def check_head(self, model: nn.Module) -> None:
        """Raise unless a model's logits are what `softmax` turns into its prediction."""

    def forward_inputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as a model gets it that is run for its logits alone: without labels."""
        return {name: value for name, value in inputs.items() if name not in self.label_names}

    def logits(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        """The items' logits: `(N, C)`, row by row."""
        name, class_axis = self.outputs[0]
        logits: Tensor = getattr(outputs, name).movedim(class_axis, -1)  # (B, ..., C)
        return logits.reshape(-1, logits.shape[-1])  # (N, C)

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        """The items' labels and weights, in the order of `logits`."""
        name, class_axis = self.outputs[0]
        return class_labels(inputs.get("labels"), getattr(outputs, name).select(class_axis, 0))

    def items(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Items:
        """A batch and a model's outputs as items."""
        labels, weights = self.labels(model, inputs, outputs)
        rows = len(getattr(outputs, self.outputs[0].name))
        return Items(self.logits(model, inputs, outputs), labels, weights, rows)

    def label_loss(self, items: Items, num_items: Tensor | int | None = None) -> Tensor:
        """The label loss of a batch as a model reports it: the mean over items that count, `()`.

        The sum is divided by `num_items`, by default the number of items that count.
        """
        if items.labels is None:
            raise BANError("The label loss needs labels, but the batch has none.")
        dtype = torch.promote_types(items.logits.dtype, torch.float32)
        labels = items.labels.where(items.weights > 0, IGNORED)  # (N,)
        if num_items is None:
            return F.cross_entropy(items.logits.to(dtype), labels)
        return F.cross_entropy(items.logits.to(dtype), labels, reduction="sum") / num_items

    def extra_loss(self, model: nn.Module, outputs: Any) -> Tensor | None:
        """What a model adds to its own label loss: `()`; None for nothing.

        Formula: router_aux_loss_coef * aux_loss, the balance of a router among experts, of a model
        whose config asks for it (`output_router_logits`).
        """
        balance = outputs.get("aux_loss") if isinstance(outputs, dict) else None
        if balance is None or not isinstance(model, PreTrainedModel):
            return None
        config = model.config.get_text_config().to_dict()
        if "router_aux_loss_coef" not in config:
            raise BANError(
                f"{type(model).__name__} has an aux_loss, and its config has no "
                "router_aux_loss_coef to weigh it by: set output_router_logits=False."
            )
        return float(config["router_aux_loss_coef"]) * balance

    def merge(
        self, members: Sequence[Any], weights: Sequence[float] | None = None
    ) -> dict[str, Tensor]:
        """The members' outputs as those of their ensemble, by name and in their own shape.

        Formula: log(sum_k w_k softmax(z_k)) over the class axis; see `mean_logits`.
        """
        return {
            output.name: mean_logits(
                [getattr(member, output.name) for member in members], weights, output.class_axis
            )
            for output in self.outputs
        }

    def check_pair(
        self,
        teacher: nn.Module,
        student: nn.Module,
        processor: Any = None,
        teacher_name: str | Path | None = None,
    ) -> None:
        """Raise unless a teacher's items mean what its student's do.

        So for other classes, another order of them, another vocabulary, or another tokenizer.

        The student's `processor` may be its tokenizer. `teacher_name` is the folder or Hub id that
        the teacher was loaded from, by default what its config says.
        """
        if not (isinstance(teacher, PreTrainedModel) and isinstance(student, PreTrainedModel)):
            return
        self.check_head(teacher)
        self.check_head(student)
        check_classes(teacher.config, student.config)
        if student.main_input_name == teacher.main_input_name == "input_ids":
            check_vocabularies(teacher.config, student.config)
            if isinstance(processor, PreTrainedTokenizerBase):
                check_tokenizers(str(teacher_name or teacher.config.name_or_path), processor)

    def loss_metrics(self, loss: float) -> dict[str, float]:
        """What an evaluation logs that follows from its label loss, by name."""
        if self.headline.name != "perplexity":
            return {}
        return {"perplexity": torch.tensor(loss).exp().item()}  # inf for a loss beyond 709


# Labels and their loss


def class_labels(labels: Tensor | None, places: Tensor) -> Labels:
    """Class numbers as the labels of items, -100 for those that do not count.

    Args:
        labels: class numbers of the shape of `places`; None if the batch has none, and all count.
        places: one number for each item, of any kind, such as the logits of the first class.
    """
    if labels is None:
        return Labels(None, torch.ones_like(places, dtype=torch.float32).reshape(-1))  # (N,)
    if labels.shape != places.shape or labels.is_floating_point():
        raise BANError(
            f"labels must be class numbers of shape {tuple(places.shape)}, one for each item, not "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    labels = labels.reshape(-1).long()  # (N,)
    counts = labels != IGNORED  # (N,)
    return Labels(labels.where(counts, 0), counts.float())


def check_label_range(labels: Tensor, classes: int) -> None:
    """Raise unless labels, of any shape, are class numbers or -100. Reads them on the host."""
    bad = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(bad):
        raise BANError(
            f"labels has the value {int(bad[0])}, but the model has the classes 0 to "
            f"{classes - 1}: only -100 marks an item that does not count. Map the labels to those "
            "numbers, or build the model with more classes."
        )


def label_cross_entropy(
    logits: Tensor, labels: Tensor | None, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """The label cross-entropy of each item times its weight: `(N, C)`, `(N,)`, `(N,)` to `(N,)`."""
    if labels is None:
        raise BANError("The label loss needs labels, but the batch has none.")
    losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    return losses * weights  # (N,)


def check_label_loss(
    task: Task, model: nn.Module, inputs: dict[str, Any], state: dict[str, Any] | None = None
) -> int | None:
    """Raise unless a model's own loss of a batch is the task's label loss of its logits.

    So labels that a head reads in a way that the task does not know (shifted already, another
    ignored value, another class axis) are an error, and never a wrong number. The model runs
    without and with labels, in evaluation mode, without gradient; its mode, its config and the
    random state stay as they were. A model that returns no loss is not checked.

    Args:
        task: of the model.
        model: the student, not wrapped.
        inputs: a batch on the model's device.
        state: what the model is called with besides, such as the hidden state of a text.

    Returns:
        C; None where the batch has no labels that count.
    """
    if not any(inputs.get(name) is not None for name in task.label_names):
        return None
    with torch.no_grad():
        # Without labels first: a loss of labels that are no classes is an error of torch's own, on
        # a GPU one that ends the process.
        plain = task.forward_inputs(model, inputs) | (state or {})
        outputs = _run_in_evaluation(model, plain)
        if isinstance(outputs, tuple):
            raise BANError(
                f"{type(model).__name__} gives a tuple, whose logits have no name: set "
                "return_dict=True in its config."
            )
        items = task.items(model, inputs, outputs)
        if items.labels is None or not bool(items.weights.any()):
            return None
        classes = items.logits.shape[1]
        check_label_range(items.labels, classes)
        loss = task.label_loss(items)  # ()
        extra = task.extra_loss(model, outputs)
        expected = float(loss if extra is None else loss + extra)
        outputs = _run_in_evaluation(model, inputs | (state or {}))
    own = outputs.get("loss") if isinstance(outputs, dict) else None
    if own is None:
        return classes
    if not abs(float(own) - expected) <= 1e-3 * abs(expected) + 1e-5:
        raise BANError(
            f"{type(model).__name__} reports a loss of {float(own):.6g} for a batch for which the "
            f"label loss of task {task.name!r} is {expected:.6g}: the model reads its labels in "
            "another way (shifted or not, another ignored value, a further term), so its numbers "
            "would be wrong. Train a model of one of transformers' own classes for this task, or "
            "give BANTrainer a Task of your own."
        )
    return classes


def _run_in_evaluation(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """A model's outputs in evaluation mode, leaving no trace."""
    modes = [(module, module.training) for module in model.modules()]
    config = model.config if isinstance(model, PreTrainedModel) else None
    problem_type = None if config is None else config.problem_type
    on_gpu = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    model.eval()
    try:
        with torch.random.fork_rng(devices=on_gpu):
            return model(**inputs)
    finally:
        for module, training in modes:
            module.training = training
        if config is not None:
            config.problem_type = problem_type  # a forward with labels writes it


# Teacher and student


def check_classes(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Raise unless two models have the same classes in the same order, as far as they are named."""
    theirs, ours = teacher.id2label, student.id2label
    if len(theirs) != len(ours):
        raise BANError(
            f"teacher has {len(theirs)} classes and model has {len(ours)}: build the student with "
            "the teacher's num_labels, or choose another teacher."
        )
    if _are_placeholders(theirs) or _are_placeholders(ours):
        return
    for i, label in ours.items():
        if theirs[i] != label:
            raise BANError(
                f"teacher and model name their classes differently: class {i} is {theirs[i]!r} to "
                f"the teacher and {label!r} to the model. Build the student with the teacher's "
                "id2label and order the labels of the data by it."
            )


def _are_placeholders(id2label: dict[int, str]) -> bool:
    """Whether these are the names that `transformers` gives where there are none."""
    return all(name == f"LABEL_{i}" for i, name in id2label.items())


def check_vocabularies(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Raise unless two models read the same words, as far as their configs tell."""
    configs = [config.get_text_config().to_dict() for config in (teacher, student)]
    theirs, ours = (config.get("vocab_size") for config in configs)
    if theirs != ours and None not in (theirs, ours):
        raise BANError(
            f"teacher has a vocabulary of {theirs} and model one of {ours}: build the student with "
            "the teacher's vocabulary, or choose another teacher."
        )
    theirs, ours = (config.get("vocabulary_sha256") for config in configs)
    if theirs != ours and None not in (theirs, ours):
        raise BANError(
            "teacher and model have other words, or the same in another order: encode the text "
            "with the teacher's tokenizer and build the student from its words."
        )


def check_tokenizers(teacher_name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless the teacher's tokenizer, where it is on this machine, numbers words alike."""
    folder = _local_tokenizer(teacher_name)
    if folder is None:
        return
    from transformers import AutoTokenizer  # half loaded when the Auto classes load this module

    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()
    for word, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(word) != index:
            raise BANError(
                f"teacher and processing_class number their words differently: {word!r} is "
                f"{index} here and {theirs.get(word)} in {folder}. Use the teacher's tokenizer: "
                f"AutoTokenizer.from_pretrained({str(folder)!r})."
            )


def _local_tokenizer(name: str) -> Path | None:
    """The folder of a model's tokenizer; None if it is not on this machine."""
    if not name:  # a fresh model, which has none
        return None
    if Path(name).is_dir():
        return Path(name) if (Path(name) / TOKENIZER_FILE).is_file() else None
    repo_id, _, revision = name.partition("@")
    if repo_id.count("/") > 1:  # a folder that is not there
        return None
    cached = try_to_load_from_cache(repo_id, TOKENIZER_FILE, revision=revision or None)
    return Path(cached).parent if isinstance(cached, str) else None


# Ensembles


def mean_logits(
    members: Sequence[Tensor], weights: Sequence[float] | None = None, class_axis: int = -1
) -> Tensor:
    """log(sum_k w_k softmax(z_k)) of K members' logits, computed in float32 at least.

    Shapes: logits of any one shape, with the classes on `class_axis`; the result has that shape.
    The weights are in any unit, and equal by default.
    """
    weights = normalized_weights(weights, len(members))
    if weights is not None:  # 0 times NaN is NaN: nothing of a member without weight comes through
        members = [member for member, weight in zip(members, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
    logits = torch.stack(list(members))  # (K, ..., C)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    axis = class_axis if class_axis < 0 else class_axis + 1
    logp = logits.log_softmax(axis)  # (K, ..., C)
    if weights is None or min(weights) == max(weights):
        return logp.logsumexp(0) - math.log(len(logp))  # (..., C)
    log_weights = logp.new_tensor([math.log(weight) for weight in weights])  # (K,)
    return (logp + log_weights.view(-1, *[1] * (logp.ndim - 1))).logsumexp(0)  # (..., C)


def normalized_weights(weights: Sequence[float] | None, members: int) -> list[float] | None:
    """Weights that sum to 1; None for equal ones."""
    if weights is None:
        return None
    weights = [float(weight) for weight in weights]
    if len(weights) != members:
        raise BANError(
            f"weights={weights}: there must be one for each of the {members} members, not "
            f"{len(weights)}."
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise BANError(
            f"weights={weights} must be finite, none of them negative, and not all 0; they need "
            "not sum to 1."
        )
    largest = max(weights)
    if min(weights) == largest:
        return None
    shares = [weight / largest for weight in weights]  # the sum of very large ones would overflow
    return [share / sum(shares) for share in shares]
