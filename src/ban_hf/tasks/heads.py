"""The heads that can be taught: classifiers of images and sentences, and causal language models."""

from typing import Any

import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import CATALOG
from ban_hf.tasks.base import Labels, Task, class_labels


class Classification(Task):
    """One class for each row: logits `(B, C)`, labels `(B,)`."""

    one_item_a_row = True

    def check_head(self, model: nn.Module) -> None:
        """Raise for a head of several labels or of a number, whose logits are no distribution."""
        if isinstance(model, PreTrainedModel):
            kind = model.config.problem_type
            if kind not in (None, "single_label_classification"):
                raise BANError(
                    f"{type(model).__name__} has problem_type={kind!r}: only classifiers of one "
                    "class out of several can be distilled and averaged."
                )


class ImageClassification(Classification):
    """One class for each image."""

    facts = CATALOG["image-classification"]


class SequenceClassification(Classification):
    """One class for each sentence."""

    facts = CATALOG["text-classification"]


class CausalLanguageModeling(Task):
    """The next word at each place: logits `(B, T, V)`, labels `(B, T)`.

    As everywhere in transformers `labels` are the words themselves and are shifted by one place
    here, once. `shift_labels` come first and are shifted already: windows of a text have them, so
    that the last word of a window is not lost.
    """

    facts = CATALOG["text-generation"]
    label_names = ("labels", "shift_labels")
    default_label_weight = 1.0  # without labels a language model hardly trains

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        labels = inputs.get("shift_labels")  # (B, T)
        if labels is None:
            labels = inputs.get("labels")
            if labels is None:
                raise BANError(
                    "A language model's batches need labels, which tell its words from padding: as "
                    "DataCollatorForLanguageModeling(tokenizer, mlm=False) gives them."
                )
            labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]  # (B, T)
        return class_labels(labels, outputs.logits[..., 0])
