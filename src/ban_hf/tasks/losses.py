"""The label loss of items, and the check that it is the one that the model itself reports."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.objectives import NEED_LABELS, check_objective, label_losses
from ban_hf.tasks.base import Items, Output, Task, Transcripts


def label_loss(items: Items, num_items: Tensor | int | None = None) -> Tensor:
    """The label loss of a batch as a model reports it: the mean over items that count, `()`.

    The sum is divided by `num_items`, by default the number of items that count.
    """
    losses, weights = label_terms(items.logits, items)  # (M,), (M,)
    if items.transcripts is not None and not items.transcripts.by_length:
        return losses.sum()
    sums = losses.view(-1, items.groups).sum(0)  # (G,)
    counts = weights.view(-1, items.groups).sum(0) if num_items is None else num_items
    return (sums / counts).mean()


def label_terms(logits: Tensor, items: Items, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The label losses of logits `(N, C)`, each times its weight, and the weights: `(M,)`, `(M,)`.

    M is the number of items, or that of rows where these have the labels.
    """
    if smoothing and (items.activation != "softmax" or items.transcripts is not None):
        raise BANError("label_smoothing_factor needs one class for each item: leave it out.")
    if items.transcripts is not None:
        return transcript_losses(logits.view(items.rows, -1, logits.shape[1]), items.transcripts)
    if items.labels is None:
        raise BANError("The label loss needs labels, but the batch has none.")
    losses = label_losses(logits, items.labels, items.activation, smoothing)  # (N,)
    return losses * items.weights, items.weights


def transcript_losses(logits: Tensor, transcripts: Transcripts) -> tuple[Tensor, Tensor]:
    """The CTC losses of rows times their weights, and the weights: `(B, T, V)` to `(B,)` twice."""
    text, blank = transcripts.text, transcripts.blank
    counts = (text != IGNORED) & (text != blank)  # (B, L)
    lengths = counts.sum(1)  # (B,)
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    with torch.backends.cudnn.flags(enabled=False):  # which reads other targets than these
        losses = F.ctc_loss(
            logp.transpose(0, 1),  # (T, B, V)
            text[counts],
            transcripts.frames,
            lengths,
            blank=blank,
            reduction="none",
            zero_infinity=transcripts.zero_infinity,
        )  # (B,)
    if transcripts.by_length:
        losses = losses / lengths.clamp(min=1)
    return losses * transcripts.weights, transcripts.weights


def check_label_range(labels: Tensor, classes: int) -> None:
    """Raise unless labels, of any shape, are class numbers or -100. Reads them on the host."""
    bad = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(bad):
        raise BANError(
            f"labels has the value {int(bad[0])}, but the model has the classes 0 to "
            f"{classes - 1}: only -100 marks an item that does not count. Map the labels to those "
            "numbers, or build the model with more classes."
        )


def check_meaning(task: Task, model: nn.Module, objective: str) -> None:
    """Raise where an objective has no meaning for a model's items, as its config tells them."""
    check_objective(objective, task.activation(model, {}))
    if objective in NEED_LABELS and not task.labels_items:
        raise BANError(
            f"objective={objective!r} needs a label for each item, and the labels of task "
            f"{task.name!r} are of rows. Use objective='kd'."
        )


def check_smoothing(task: Task, model: nn.Module, in_order: bool) -> None:
    """Raise where `Trainer` alone would smooth other labels than a model's.

    It smooths class numbers on the last axis of the logits, and shifts those of the causal language
    models that it knows, by the name of their class. `in_order` is for labels shifted already.
    """
    shifts = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    places = task.outputs == (Output(),) and task.activation(model, {}) == "softmax"
    if not (places and task.smooths and not in_order and task.shifts(model) == shifts):
        raise BANError(
            f"label_smoothing_factor without a teacher would smooth other labels of a "
            f"{type(model).__name__} than its own: leave it out."
        )


def check_label_loss(
    task: Task, model: nn.Module, inputs: dict[str, Any], state: dict[str, Any] | None = None
) -> int | None:
    """Raise unless a model's own loss of a batch is the task's label loss of its logits.

    So labels that a head reads in a way that the task does not know (shifted already, another
    ignored value, another class axis) are an error, and never a wrong number. The model runs
    without and with labels, in evaluation mode, without gradient; its mode and the random state
    stay as they were, and its `problem_type` is what its first labels make it. A model that
    returns no loss is not checked.

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
        if not items.has_labels or not bool(items.by_group(items.weights).all()):
            return None  # a group without items has no mean
        classes = items.logits.shape[1]
        for labels in task.class_numbers(model, inputs):
            check_label_range(labels, classes)
        loss = label_loss(items)  # ()
        extra = task.extra_loss(model, outputs)
        expected = float(loss if extra is None else loss + extra)
        if items.transcripts is not None and math.isinf(expected):
            raise BANError(
                f"{type(model).__name__} gives an infinite loss, for labels that are longer than "
                "the frames of their recording: set ctc_zero_infinity=True in the config, or leave "
                "such rows out."
            )
        if not math.isfinite(expected):
            return classes  # of a network that is broken, which a loss tells better
        try:
            outputs = _run_in_evaluation(model, inputs | (state or {}))
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise BANError(
                f"{type(model).__name__} cannot compute its own loss of these labels, which task "
                f"{task.name!r} can: {error}"
            ) from error
    own = outputs.get("loss") if isinstance(outputs, dict) else None
    if own is None:
        return classes
    if not _is_same(float(own), expected, items, getattr(outputs, task.outputs[0].name).dtype):
        raise BANError(
            f"{type(model).__name__} reports a loss of {float(own):.6g} for a batch for which the "
            f"label loss of task {task.name!r} is {expected:.6g}: the model reads its labels in "
            "another way (shifted or not, another ignored value, a further term), so its numbers "
            "would be wrong. Train a model of one of transformers' own classes for this task, or "
            "give BANTrainer a Task of your own."
        )
    return classes


def _is_same(own: float, expected: float, items: Items, dtype: torch.dtype) -> bool:
    """Whether a model's own loss is the expected one, up to the rounding of its logits' format.

    The logits of fresh weights are close to 0, and so are all readings of labels to log C: only a
    small tolerance tells one from another. In half precision some heads compute their loss in that
    format, which is 1 % off.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return abs(own - expected) <= 1e-5 * abs(expected) + 1e-6
    if abs(own - expected) <= 4e-3 * abs(expected):
        return True
    if items.labels is None or items.activation != "softmax":
        return False
    labels = items.labels.where(items.weights > 0, IGNORED).view(-1, items.groups)  # (N / G, G)
    logits = items.logits.to(dtype).view(len(labels), items.groups, -1)  # (N / G, G, C)
    rounded = [F.cross_entropy(logits[:, g], labels[:, g]) for g in range(items.groups)]
    return abs(own - float(torch.stack(rounded).mean())) <= 1e-3 * abs(own)


def _run_in_evaluation(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """A model's outputs in evaluation mode; its mode and the random state stay."""
    modes = [(module, module.training) for module in model.modules()]
    on_gpu = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    model.eval()
    try:
        with torch.random.fork_rng(devices=on_gpu):
            return model(**inputs)
    finally:
        for module, training in modes:
            module.training = training
