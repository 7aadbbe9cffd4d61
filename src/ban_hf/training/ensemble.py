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

from ban_hf.errors import BANError
from ban_hf.tasks.heads import build_classifier

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
    """The configs of an ensemble's members, in order, and their `weights` (None: equal ones)."""

    model_type = "born_again_ensemble"
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012
    weights: list[float] | None = None

    def __init__(
        self,
        members: Sequence[dict[str, Any]] = (),
        weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.members = [dict(member) for member in members]
        if weights is not None:  # equal ones are not written: a file says one thing in one way
            self.weights = list(weights)
        super().__init__(**kwargs)


class BornAgainEnsemble(PreTrainedModel):
    """The mean of K networks' probabilities, of a language model's token by token.

    Formula: logits = log(sum_k w_k softmax(z_k)), with w_k = 1/K unless weights are given, so that
    softmax(logits) is the mean of the members' probabilities and cross-entropy of the logits is its
    negative log-likelihood.
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
        normalised_weights(config.weights, len(config.members))  # of a file, that may be another's
        self.members = nn.ModuleList(_build_member(member) for member in config.members)
        self.recurrent = [is_recurrent(member) for member in self.members]
        self.post_init()
        # transformers looks for them in direct children only; without, a member whose softmax is
        # tied to its embedding would load with random weights in it.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def from_members(
        cls, members: Sequence[PreTrainedModel], weights: Sequence[float] | None = None
    ) -> "BornAgainEnsemble":
        """An ensemble of trained models, whose parameters are copied.

        It has its members' precision, or the highest of them, and the first one's device.

        Args:
            members: the models; they may be ensembles themselves.
            weights: of the members in the mean, in any unit; equal by default.

        Raises:
            ValueError: if there are no members, their classes or inputs differ, or the weights are
                not one for each, finite, none negative and not all 0.
        """
        members = list(members)
        if not members:
            raise BANError("members is empty: an ensemble needs at least one model.")
        weights = normalised_weights(weights, len(members))
        check_alike(members)
        first = members[0]
        own = {"_name_or_path": ""}  # not the folder of this machine that it was loaded from
        configs = [
            member.config.to_dict() | own | {"architectures": [type(member).__name__]}
            for member in members
        ]
        labels = {"id2label": first.config.id2label, "label2id": first.config.label2id}
        words = _words(first, VOCABULARY + SPECIAL_WORDS)
        ensemble = cls(BornAgainEnsembleConfig(configs, weights, **labels, **words))
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
        logits = mean_logits(  # (N, C) or (B, T, V)
            [output.logits for output in outputs], self.config.weights
        )
        loss = None
        if logits.ndim == 3 and (labels is not None or kwargs.get("shift_labels") is not None):
            loss = ForCausalLMLoss(logits, labels, logits.shape[-1], **kwargs)
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        pairs = zip(outputs, self.recurrent, strict=True)
        states = tuple(output.state if recurrent else None for output, recurrent in pairs)
        return EnsembleOutput(loss, logits, states if any(self.recurrent) else None)


def check_alike(members: Sequence[PreTrainedModel]) -> None:
    """Hold that members agree on their classes or words, and on what they read."""
    first = members[0]
    for i, member in enumerate(members):
        if member.main_input_name != first.main_input_name:
            raise BANError(
                f"members[{i}] takes {member.main_input_name}, but members[0] takes "
                f"{first.main_input_name}."
            )
        if member.config.id2label != first.config.id2label:
            raise BANError(f"members[{i}] has other classes, or another order, than members[0].")
        for name, value in _words(first, VOCABULARY).items():
            if _words(member, VOCABULARY).get(name, value) != value:
                raise BANError(
                    f"members[{i}] has another vocabulary than members[0]: its {name} is "
                    f"{_words(member, VOCABULARY)[name]}, not {value}."
                )


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


def normalised_weights(weights: Sequence[float] | None, members: int) -> list[float] | None:
    """Weights that sum to 1; None for equal ones, however they were given.

    Raises:
        ValueError: if they are not one for each member, finite, none negative and not all 0.
    """
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


def mean_logits(members: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """log(sum_k w_k softmax(z_k)) of K members' logits `(..., C)`, computed in float32 at least.

    Args:
        members: their logits.
        weights: see `BornAgainEnsemble.from_members`; equal by default.
    """
    members, log_weights = weighted(members, weights)
    logits = torch.stack(members)  # (K, ..., C)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return log_mean_exp(logits.log_softmax(-1), log_weights)  # (..., C)


def weighted(
    members: Sequence[Any], weights: Sequence[float] | None
) -> tuple[list[Any], list[float] | None]:
    """The members that count, and the logarithms of their weights, None where those are equal.

    A member of weight 0 is left out, so that nothing of it comes through: 0 times NaN is NaN.
    """
    weights = normalised_weights(weights, len(members))
    if weights is None:
        return list(members), None
    counted = [(m, w) for m, w in zip(members, weights, strict=True) if w > 0]
    kept, shares = [m for m, _ in counted], [w for _, w in counted]
    return kept, None if min(shares) == max(shares) else [math.log(w) for w in shares]


def log_mean_exp(logp: Tensor, log_weights: Sequence[float] | None) -> Tensor:
    """log(sum_k w_k exp(x_k)) over the first axis of `(K, ...)`, with weights from `weighted`."""
    if log_weights is None:
        return logp.logsumexp(0) - math.log(len(logp))  # (...)
    shift = logp.new_tensor(log_weights).view(-1, *[1] * (logp.ndim - 1))  # (K, 1, ...)
    return (logp + shift).logsumexp(0)  # (...)


AutoConfig.register(BornAgainEnsembleConfig.model_type, BornAgainEnsembleConfig)
AutoModelForImageClassification.register(BornAgainEnsembleConfig, BornAgainEnsemble)
AutoModelForSequenceClassification.register(BornAgainEnsembleConfig, BornAgainEnsemble)
AutoModelForCausalLM.register(BornAgainEnsembleConfig, BornAgainEnsemble)
