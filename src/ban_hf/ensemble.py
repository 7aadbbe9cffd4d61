"""The born-again ensemble (BANE): the mean of several generations' predictions."""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from ban_hf.heads import build_classifier


class BornAgainEnsembleConfig(PretrainedConfig):
    """The configs of an ensemble's members, in order."""

    model_type = "born_again_ensemble"

    def __init__(self, members: Sequence[dict[str, Any]] = (), **kwargs: Any) -> None:
        self.members = [dict(member) for member in members]
        super().__init__(**kwargs)


class BornAgainEnsemble(PreTrainedModel):
    """The mean of K classifiers' probabilities.

    Formula: logits = log(1/K sum_k softmax(z_k)), so that softmax(logits) is the mean of the
    members' probabilities and cross-entropy of the logits is its negative log-likelihood.
    Shapes: each member's logits and the ensemble's are `(N, C)`.
    Reference: Furlanello et al. 2018, section 3.1.

    Members may differ in architecture; they must agree on the classes and on their inputs. The
    ensemble saves to one folder, loads with the Auto classes, and serves as a teacher. Its members
    run one after another: stacked by `torch.func` they are slower on a CPU, by 1.1 to 3.1 times
    (`benchmarks/stacked_ensemble.py`).
    """

    config_class = BornAgainEnsembleConfig
    accepts_loss_kwargs = False  # its loss is the mean over the batch

    def __init__(self, config: BornAgainEnsembleConfig) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(_build_member(member) for member in config.members)
        self.post_init()

    @classmethod
    def from_members(cls, members: Sequence[PreTrainedModel]) -> "BornAgainEnsemble":
        """An ensemble of trained models, whose weights are copied.

        It has its members' precision, or the highest of them, and the first one's device.

        Raises:
            ValueError: if there are no members, or their classes or inputs differ.
        """
        members = list(members)
        if not members:
            raise ValueError("members is empty: an ensemble needs at least one model.")
        first = members[0]
        for i, member in enumerate(members):
            if member.config.id2label != first.config.id2label:
                raise ValueError(
                    f"members[{i}] has other classes, or another order, than members[0]."
                )
            if member.main_input_name != first.main_input_name:
                raise ValueError(
                    f"members[{i}] takes {member.main_input_name}, but members[0] takes "
                    f"{first.main_input_name}."
                )
        own = {"_name_or_path": ""}  # not the folder of this machine that it was loaded from
        configs = [
            member.config.to_dict() | own | {"architectures": [type(member).__name__]}
            for member in members
        ]
        labels = {"id2label": first.config.id2label, "label2id": first.config.label2id}
        ensemble = cls(BornAgainEnsembleConfig(configs, **labels))
        for ours, member in zip(ensemble.members, members, strict=True):
            ours.load_state_dict(member.state_dict())
        dtype = functools.reduce(torch.promote_types, (member.dtype for member in members))
        return ensemble.to(first.device, dtype).eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each member initialises itself."""

    @property
    def main_input_name(self) -> str:
        return str(self.members[0].main_input_name)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """The members' mean prediction, and with labels its negative log-likelihood."""
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        logits = mean_logits([member(**given).logits for member in self.members])  # (N, C)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _build_member(config: dict[str, Any]) -> PreTrainedModel:
    # from_dict, since some configs (timm's) read other names than their constructor takes; it may
    # change what it reads.
    config_class = CONFIG_MAPPING[config["model_type"]]
    return build_classifier(config_class.from_dict(copy.deepcopy(config)))


def mean_logits(members: Sequence[Tensor]) -> Tensor:
    """log(1/K sum_k softmax(z_k)) of K members' logits `(..., C)`, computed in float32 at least."""
    logits = torch.stack(list(members))  # (K, ..., C)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(members))  # (..., C)


AutoConfig.register(BornAgainEnsembleConfig.model_type, BornAgainEnsembleConfig)
AutoModelForImageClassification.register(BornAgainEnsembleConfig, BornAgainEnsemble)
AutoModelForSequenceClassification.register(BornAgainEnsembleConfig, BornAgainEnsemble)
