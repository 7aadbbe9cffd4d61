"""Classifiers of images and of sentences: an item is an image or a sentence with one class."""

from typing import Any

import evaluate
from torch import Tensor, nn

from ban_hf.tasks.base import Labels, Task, class_labels
from ban_hf.tasks.catalog import CATALOG
from ban_hf.tasks.metrics import CalibrationError, ErrorRate, NegativeLogLikelihood


class Classification(Task):
    """One class for each row: logits `(B, C)`, labels `(B,)`."""

    one_item_a_row = True

    def logits(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        logits: Tensor = outputs.logits  # (N, C)
        return logits

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        return class_labels(inputs.get("labels"), outputs.logits[:, 0])

    def metrics(self) -> list[evaluate.Metric]:
        return [ErrorRate(), NegativeLogLikelihood(), CalibrationError()]


class ImageClassification(Classification):
    """One class for each image."""

    facts = CATALOG["image-classification"]


class SequenceClassification(Classification):
    """One class for each sentence."""

    facts = CATALOG["text-classification"]
