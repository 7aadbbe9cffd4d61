"""Causal language models: an item is a word, whose label is the next word."""

from typing import Any

import evaluate
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ban_hf.errors import BANError
from ban_hf.lineage.names import CATALOG
from ban_hf.tasks.base import IGNORED, Labels, Task, class_labels
from ban_hf.tasks.metrics import NegativeLogLikelihood, Perplexity


class CausalLanguageModeling(Task):
    """The next word at each place: logits `(B, T, V)`, labels `(B, T)`.

    As everywhere in transformers `labels` are the words themselves and are shifted by one place
    here, once. `shift_labels` come first and are shifted already: windows of a text have them, so
    that the last word of a window is not lost.
    """

    facts = CATALOG["text-generation"]
    label_names = ("labels", "shift_labels")
    default_label_weight = 1.0  # without labels a language model hardly trains

    def logits(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        logits: Tensor = outputs.logits  # (B, T, V)
        return logits.reshape(-1, logits.shape[-1])  # (N, V)

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        places, labels = outputs.logits[..., 0], inputs.get("shift_labels")  # (B, T)
        if labels is None:
            labels = inputs.get("labels")
            if labels is None:
                raise BANError(
                    "A language model's batches need labels, which tell its words from padding: as "
                    "DataCollatorForLanguageModeling(tokenizer, mlm=False) gives them."
                )
            labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]  # (B, T)
        return class_labels(labels, places)

    def loss_metrics(self, loss: float) -> dict[str, float]:
        return {"perplexity": torch.tensor(loss).exp().item()}  # inf for a loss beyond 709

    def metrics(self) -> list[evaluate.Metric]:
        return [Perplexity(), NegativeLogLikelihood()]
