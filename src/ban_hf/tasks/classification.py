"""Classifiers of images and of sentences: an item is an image or a sentence with one class."""

from typing import Any

import evaluate
from torch import Tensor, nn
from transformers import PreTrainedModel

from ban_hf.errors import BANError
from ban_hf.lineage.names import CATALOG
from ban_hf.tasks.base import Activation, Labels, Task, class_labels
from ban_hf.tasks.metrics import CalibrationError, ErrorRate, NegativeLogLikelihood


class Classification(Task):
    """One class for each row: logits `(B, C)`, labels `(B,)`."""

    one_item_a_row = True

    def logits(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        logits: Tensor = outputs.logits  # (N, C)
        return logits

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        return class_labels(inputs.get("labels"), outputs.logits[:, 0])

    def activation(self, model: nn.Module) -> Activation:
        """Softmax.

        Raises:
            BANError: of a head of several labels or of a number, whose logits are no distribution.
        """
        if isinstance(model, PreTrainedModel):
            config = model.config
            if config.problem_type not in (None, "single_label_classification"):
                raise BANError(
                    f"{type(model).__name__} has problem_type={config.problem_type!r}: only "
                    "classifiers of one class out of several can be distilled and averaged."
                )
        return "softmax"

    def metrics(self) -> list[evaluate.Metric]:
        return [ErrorRate(), NegativeLogLikelihood(), CalibrationError()]


class ImageClassification(Classification):
    """One class for each image."""

    facts = CATALOG["image-classification"]


class SequenceClassification(Classification):
    """One class for each sentence."""

    facts = CATALOG["text-classification"]
