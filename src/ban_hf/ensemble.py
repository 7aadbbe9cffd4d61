"""The born-again ensemble (BANE): the mean of several generations' predictions."""

import copy
import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import ModelOutput

from ban_hf.heads import build_classifier

#: What members must agree on, where their configs have it, and what the ensemble has of the first.
VOCABULARY = ("vocab_size", "vocabulary_sha256")
SPECIAL_WORDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass
class EnsembleOutput(ModelOutput):
    """`loss` `()`, `logits` `(N, C)` or `(B, T, V)`, `state`: the members' states, if recurrent."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: tuple[Any, ...] | None = None


class BornAgainEnsembleConfig(PretrainedConfig):
    """The configs of an ensemble's members, in order."""

    model_type = "born_again_ensemble"
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012

    def __init__(self, members: Sequence[dict[str, Any]] = (), **kwargs: Any) -> None:
        self.members = [dict(member) for member in members]
        super().__init__(**kwargs)


class BornAgainEnsemble(PreTrainedModel):
    """The mean of K networks' probabilities, of a language model's token by token.

    Formula: logits = log(1/K sum_k softmax(z_k)), so that softmax(logits) is the mean of the
    members' probabilities and cross-entropy of the logits is its negative log-likelihood.
    Shapes: each member's logits and the ensemble's are `(N, C)`, or `(B, T, V)`; `state` is a tuple
    of the members' states, None for members that have none.
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
        self.recurrent = [is_recurrent(member) for member in self.members]
        self.post_init()
        # transformers looks for them in direct children only; without, a member whose softmax is
        # tied to its embedding would load with random weights in it.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

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
            for name, value in _words(first, VOCABULARY).items():
                if _words(member, VOCABULARY).get(name, value) != value:
                    raise ValueError(
                        f"members[{i}] has another vocabulary than members[0]: its {name} is "
                        f"{_words(member, VOCABULARY)[name]}, not {value}."
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
        words = _words(first, VOCABULARY + SPECIAL_WORDS)
        ensemble = cls(BornAgainEnsembleConfig(configs, **labels, **words))
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
        state: tuple[Any, ...] | None = None,
        **kwargs: Any,
    ) -> EnsembleOutput:
        """The members' mean prediction, and with labels its negative log-likelihood.

        Labels of a language model are shifted, once; `shift_labels`, as a keyword, are not.
        """
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        states = state or (None,) * len(self.members)
        outputs = [
            member(**given, **({"state": own} if recurrent else {}))
            for member, own, recurrent in zip(self.members, states, self.recurrent, strict=True)
        ]
        logits = mean_logits([output.logits for output in outputs])  # (N, C) or (B, T, V)
        loss = None
        if logits.ndim == 3 and (labels is not None or kwargs.get("shift_labels") is not None):
            loss = ForCausalLMLoss(logits, labels, logits.shape[-1], **kwargs)
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        pairs = zip(outputs, self.recurrent, strict=True)
        states = tuple(output.state if recurrent else None for output, recurrent in pairs)
        return EnsembleOutput(loss, logits, states if any(self.recurrent) else None)


def is_recurrent(model: nn.Module) -> bool:
    """Whether a model takes a `state` and gives one, or an ensemble has such a member."""
    if isinstance(model, BornAgainEnsemble):
        return any(model.recurrent)
    return "state" in inspect.signature(model.forward).parameters


def is_language_model(model: nn.Module) -> bool:
    """Whether a model is a causal language model, or an ensemble of such."""
    if isinstance(model, BornAgainEnsemble):
        return all(is_language_model(member) for member in model.members)
    return isinstance(model, GenerationMixin)


def _words(model: PreTrainedModel, names: Sequence[str]) -> dict[str, Any]:
    """What the config of a language model says of its words, as far as it does."""
    if not is_language_model(model):
        return {}
    config = model.config.to_dict()
    return {name: config[name] for name in names if config.get(name) is not None}


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
AutoModelForCausalLM.register(BornAgainEnsembleConfig, BornAgainEnsemble)
