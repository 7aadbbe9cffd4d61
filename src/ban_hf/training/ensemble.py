"""The born-again ensemble (BANE): the mean of several generations' predictions.

The Auto classes load this module as soon as they are loaded, perhaps while our tasks are being
loaded. So tasks are imported where they are used.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import CATALOG, TaskFacts
from ban_hf.models.adapters import merged
from ban_hf.models.configuration import BornAgainEnsembleConfig

if TYPE_CHECKING:
    from ban_hf.tasks.base import Task

#: What members must agree on, where their configs have it, and what the ensemble has of the first.
VOCABULARY = ("vocab_size", "vocabulary_sha256")
SPECIAL_WORDS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: What the ensemble's loss and output need, and its members do not get.
FOR_THE_LOSS = frozenset({"shift_labels", "num_items_in_batch", "return_dict", "use_cache"})


@dataclass
class EnsembleOutput(ModelOutput):
    """`loss` `()`, what the members predict, and `state`: the members' states, if recurrent."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    state: tuple[Any, ...] | None = None


class BornAgainEnsemble(PreTrainedModel):
    """The mean of K networks' probabilities, of a language model's token by token.

    Of a regression it is the mean of the outputs.

    Formula: logits = log(sum_k w_k softmax(z_k)), with w_k = 1/K unless weights are given, so that
    softmax(logits) is the mean of the members' probabilities and cross-entropy of the logits is its
    negative log-likelihood.
    Shapes: the ensemble's logits have the shape of its members'; `state` is a tuple of the members'
    states, None for members that have none.
    Reference: Furlanello et al. 2018, section 3.1.

    Members may differ in architecture; they must agree on the classes and on their inputs. The
    ensemble saves to one folder, loads with the Auto classes, and serves as a teacher. Its members
    run one after another: stacked by `torch.func` they are slower on a CPU, by 1.1 to 3.1 times
    (`benchmarks/stacked_ensemble.py`).
    """

    config_class = BornAgainEnsembleConfig
    accepts_loss_kwargs = False  # its loss is the mean over the batch

    def __init__(self, config: BornAgainEnsembleConfig) -> None:
        from ban_hf.tasks import auto
        from ban_hf.tasks.base import normalized_weights
        from ban_hf.tasks.pairing import foreign_inputs
        from ban_hf.training.recurrence import is_recurrent

        super().__init__(config)
        normalized_weights(config.weights, len(config.members))  # the file may be another's
        self.members = nn.ModuleList(
            auto.build_model(auto.member_config(member)) for member in config.members
        )
        self.task = auto.task_of(config)
        self.activation = self.task.activation(self.members[0], {})
        self.recurrent = [is_recurrent(member) for member in self.members]
        self.foreign = [foreign_inputs(member, self.members) for member in self.members]
        self.post_init()
        # transformers looks for them in direct children only; without, a member whose softmax is
        # tied to its embedding would load with random weights in it.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def from_members(
        cls, members: Sequence[PreTrainedModel], weights: Sequence[float] | None = None
    ) -> "BornAgainEnsemble":
        """An ensemble of trained models, whose parameters are copied.

        It has its members' precision, or the highest of them, and the first one's device. An
        adapter is added to a copy of its base.

        Args:
            members: the models; they may be ensembles themselves, or `PeftModel`s.
            weights: of the members in the mean, in any unit; equal by default.

        Raises:
            BANError: if there are no members, their classes or inputs differ, or the weights are
                not one for each, finite, none negative and not all 0.
        """
        from ban_hf.tasks.base import normalized_weights

        members = list(map(merged, members))
        if not members:
            raise BANError("members is empty: an ensemble needs at least one model.")
        weights = normalized_weights(weights, len(members))
        check_alike(members)
        first = members[0]
        configs = [
            # Without the folder of this machine that it was loaded from.
            m.config.to_dict() | {"_name_or_path": "", "architectures": [type(m).__name__]}
            for m in members
        ]
        labels = {"id2label": first.config.id2label, "label2id": first.config.label2id}
        labels["problem_type"] = first.config.problem_type
        words = _words(first, VOCABULARY + SPECIAL_WORDS)
        ensemble = cls(BornAgainEnsembleConfig(configs, weights, **labels, **words))
        for ours, member in zip(ensemble.members, members, strict=True):
            ours.load_state_dict(member.state_dict())
        dtype = functools.reduce(torch.promote_types, (member.dtype for member in members))
        return ensemble.to(first.device, dtype).eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each member initializes itself."""

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
        from ban_hf.tasks.losses import label_loss
        from ban_hf.tasks.pairing import call_options, without

        named = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "labels": labels,
        }
        inputs = {name: value for name, value in (named | kwargs).items() if value is not None}
        given = {
            name: value
            for name, value in self.task.forward_inputs(self, inputs).items()
            if name not in FOR_THE_LOSS
        }
        states = state or (None,) * len(self.members)
        outputs = [
            member(
                **without(given, names),
                **call_options(member),
                **({"state": own} if recurrent else {}),
            )
            for member, names, own, recurrent in zip(
                self.members, self.foreign, states, self.recurrent, strict=True
            )
        ]
        merged = EnsembleOutput()
        means = self.task.merge(outputs, self.config.weights, self.activation)
        for name, tensor in means.items():
            merged[name] = tensor
        if any(name in inputs for name in self.task.label_names):
            items = self.task.items(self, inputs, merged)
            if items.activation != self.activation:
                raise BANError(
                    "The labels are floats, as those of several labels are, but the members' "
                    "configs do not say so: set their problem_type."
                )
            merged.loss = label_loss(items, kwargs.get("num_items_in_batch"))
        if any(self.recurrent):
            pairs = zip(outputs, self.recurrent, strict=True)
            merged.state = tuple(output.state if recurrent else None for output, recurrent in pairs)
        return merged


def check_alike(members: Sequence[PreTrainedModel]) -> None:
    """Raise unless members agree on their task, their classes or words, and their inputs."""
    from ban_hf.tasks.auto import task_of

    first, task = members[0], task_of(members[0])
    for i, member in enumerate(members):
        if member.main_input_name != first.main_input_name:
            raise BANError(
                f"members[{i}] takes {member.main_input_name}, but members[0] takes "
                f"{first.main_input_name}."
            )
        if task_of(member).name != task.name:
            raise BANError(
                f"members[{i}] is for {task_of(member).name}, but members[0] for {task.name}."
            )
        if task.activation(member, {}) != task.activation(first, {}):
            raise BANError(f"members[{i}] has another problem_type than members[0].")
        if member.config.id2label != first.config.id2label:
            raise BANError(f"members[{i}] has other classes, or another order, than members[0].")
        words = _words(member, VOCABULARY)
        for name, value in _words(first, VOCABULARY).items():
            if words.get(name, value) != value:
                raise BANError(
                    f"members[{i}] has another vocabulary than members[0]: its {name} is "
                    f"{words[name]}, not {value}."
                )


def _words(model: PreTrainedModel, names: Sequence[str]) -> dict[str, Any]:
    """What the config of a model that reads words tells about them."""
    if model.main_input_name != "input_ids":
        return {}
    config = model.config.to_dict()
    return {name: config[name] for name in names if config.get(name) is not None}


def add_task(task: "Task") -> None:
    """Make a task of your own known to sequences, ensembles and cards.

    Its models are found by `task.facts.auto_class`, with which their class must be registered.
    """
    from ban_hf.tasks.auto import TASKS

    TASKS[task.name], CATALOG[task.name] = task, task.facts
    _register(task.facts)


def _register(facts: TaskFacts) -> None:
    """Make an Auto class load ensembles of the models that it loads."""
    auto_class = getattr(transformers, facts.auto_class)
    auto_class.register(BornAgainEnsembleConfig, BornAgainEnsemble, exist_ok=True)


for _facts in CATALOG.values():
    _register(_facts)
