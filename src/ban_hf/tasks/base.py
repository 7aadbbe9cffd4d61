"""What a head predicts: a batch and a model's outputs as items.

An *item* is one prediction: an image, a sentence, or a word of a text. A `Task` turns a batch and a
model's outputs into `Items`. The objectives, the loss of a step, evaluation, the teacher cache and
the ensemble see items only, and never the shape of a model's outputs.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import ENSEMBLE, LEADING, Activation, Metric
from ban_hf.lineage.catalog import TaskFacts as TaskFacts

ROUTER_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")  # by a config's name for it


class Output(NamedTuple):
    """A tensor of logits among a model's outputs, and the axis of its classes."""

    name: str = "logits"
    class_axis: int = -1


class Labels(NamedTuple):
    """The labels of a batch's items, and what each of them counts for."""

    values: Tensor | None  # see `Items.labels`; None where the batch has none
    weights: Tensor  # (N,) float32; 0 for an item that does not count


class Transcripts(NamedTuple):
    """Labels of rows, not of items: what is said in B recordings, for the CTC loss of their frames.

    The loss of a row is -log of the probability of all alignments of its text to its frames, with
    `by_length` divided by the length of the text.
    """

    text: Tensor  # (B, L) token numbers; IGNORED and the blank are padding
    frames: Tensor  # (B,) frames of each row that count
    weights: Tensor  # (B,) float32
    blank: int
    zero_infinity: bool  # count a text that is longer than its frames as 0
    by_length: bool


class Items(NamedTuple):
    """N predictions of a batch of B rows, the same number for each row, row by row.

    A model with several outputs of logits has as many groups of items, in turn: item n belongs to
    group n mod G. A loss is the mean over groups of the mean over the items of each.
    """

    logits: Tensor  # (N, C)
    labels: Tensor | None  # (N,) int64, 0 where the weight is 0; (N, C) floats if not softmax
    weights: Tensor  # (N,) float32; 0 for an item that does not count
    rows: int  # B; the items of row b are those from b N/B to (b + 1) N/B
    activation: Activation = "softmax"
    groups: int = 1  # G
    transcripts: Transcripts | None = None  # labels of rows, in place of `labels`
    common: int | None = None  # C, if of a teacher whose student has further classes behind them

    @property
    def has_labels(self) -> bool:
        """Whether there is a label loss."""
        return self.labels is not None or self.transcripts is not None

    def by_group(self, column: Tensor) -> Tensor:
        """The sum of a column `(N,)` over the items of each group: `(G,)`."""
        return column.view(-1, self.groups).sum(0)

    def beside(self, student_logits: Tensor) -> Tensor:
        """A student's logits as they are compared with these, a teacher's: of the same classes."""
        return student_logits if self.common is None else student_logits[:, : self.common]


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
        classes: what the classes of an item are: `names` of the config, `words` of its vocabulary,
            or neither.
        needs_labels: whether nothing is known of a batch without labels.
        labels_items: whether labels are of items, and not of rows.
        smooths: whether labels are the items' class numbers, which `Trainer` can smooth.
        default_label_weight: `label_weight` of a sequence of such models, where none is given.
    """

    facts: TaskFacts
    label_names: tuple[str, ...] = ("labels",)
    outputs: tuple[Output, ...] = (Output(),)
    classes: Literal["names", "words"] | None = None
    needs_labels: bool = False
    labels_items: bool = True
    smooths: bool = True
    default_label_weight: float = 0.0

    @property
    def name(self) -> str:
        """The Hub's pipeline tag."""
        return self.facts.name

    @property
    def headline(self) -> Metric:
        """The metric that tables lead with."""
        return self.facts.headline

    def leading(self, activation: Activation, names: Sequence[str]) -> str:
        """The metric that leads for such items, whose classes have these names."""
        return LEADING.get(activation, self.headline.name)

    # The model's side

    def activation(self, model: nn.Module, inputs: dict[str, Any]) -> Activation:
        """What turns a model's logits into its prediction."""
        return "softmax"

    def forward_inputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as a model gets it that is run for its logits alone: without labels."""
        return {name: value for name, value in inputs.items() if name not in self.label_names}

    def shifts(self, model: nn.Module) -> bool:
        """Whether a label is of the place before it."""
        return False

    def check_outputs(self, outputs: Any) -> None:
        """Raise unless a model's outputs have logits for each of `outputs`."""
        for name, _ in self.outputs:
            if getattr(outputs, name, None) is None:
                raise BANError(
                    f"A model of task {self.name!r} must give {name}, as one with a head of "
                    f"{self.facts.auto_class} does, not {type(outputs).__name__}."
                )

    def logits(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        """The items' logits: `(N, C)`, row by row."""
        found: list[Tensor] = [
            getattr(outputs, name).movedim(class_axis, -1)  # (B, ..., C)
            for name, class_axis in self.outputs
        ]
        logits = found[0] if len(found) == 1 else torch.stack(found, -2)  # (B, ..., G, C)
        return logits.reshape(-1, logits.shape[-1])  # (N, C)

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        """The items' labels and weights, in the order of `logits`."""
        name, class_axis = self.outputs[0]
        return class_labels(inputs.get("labels"), getattr(outputs, name).select(class_axis, 0))

    def items(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Items:
        """A batch and a model's outputs as items."""
        self.check_outputs(outputs)
        labels, weights = self.labels(model, inputs, outputs)
        return Items(
            self.logits(model, inputs, outputs),
            labels,
            weights,
            rows=len(getattr(outputs, self.outputs[0].name)),
            activation=self.activation(model, inputs),
            groups=len(self.outputs),
        )

    def class_numbers(self, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        """The labels of a batch that must be class numbers, or IGNORED, as they are given."""
        found = [inputs.get(name) for name in self.label_names]
        return [x for x in found if isinstance(x, Tensor) and not x.is_floating_point()]

    def extra_loss(self, model: nn.Module, outputs: Any) -> Tensor | None:
        """What a model adds to its own label loss: `()`; None for nothing.

        Formula: coefficient * aux_loss, the balance of a router among experts, of a model whose
        config asks for it (`output_router_logits`).
        """
        balance = outputs.get("aux_loss") if isinstance(outputs, dict) else None
        if balance is None or not isinstance(model, PreTrainedModel):
            return None
        config = model.config.get_text_config().to_dict()
        for name in ROUTER_COEFFICIENTS:
            if name in config:
                return float(config[name]) * balance
        raise BANError(
            f"{type(model).__name__} has an aux_loss, and its config has no "
            f"{' or '.join(ROUTER_COEFFICIENTS)} to weigh it by: set output_router_logits=False."
        )

    def merge(
        self,
        members: Sequence[Any],
        weights: Sequence[float] | None = None,
        activation: Activation = "softmax",
    ) -> dict[str, Tensor]:
        """The members' outputs as those of their ensemble, by name and in their own shape.

        Formula: log(sum_k w_k softmax(z_k)) over the class axis; see `mean_logits`.
        """
        return {
            output.name: mean_logits(
                [getattr(member, output.name) for member in members],
                weights,
                output.class_axis,
                activation,
            )
            for output in self.outputs
        }

    def check_pair(self, teacher: nn.Module, student: nn.Module) -> None:
        """Raise unless a teacher's items mean what its student's do.

        `pairing.pair` looks after their classes and words.
        """

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


def first_member(model: nn.Module) -> Any:
    """The network whose config tells how labels are read: of an ensemble its first member."""
    while isinstance(model, PreTrainedModel) and model.config.model_type == ENSEMBLE:
        model = model.members[0]
    return model


def members_of(model: nn.Module) -> list[Any]:
    """The networks of an ensemble, and of the ensembles among them; of another model itself."""
    if isinstance(model, PreTrainedModel) and model.config.model_type == ENSEMBLE:
        members = model.get_submodule("members").children()
        return [each for member in members for each in members_of(member)]
    return [model]


# Ensembles


def mean_logits(
    members: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    class_axis: int = -1,
    activation: Activation = "softmax",
) -> Tensor:
    """log(sum_k w_k softmax(z_k)) of K members' logits, computed in float32 at least.

    For `sigmoid` the logit of the mean probability, log(sum_k w_k q_k) - log(sum_k w_k (1 - q_k));
    for `identity` the mean of the outputs.
    Shapes: logits of any one shape, with the classes on `class_axis`; the result has that shape.
    The weights are in any unit, and equal by default.
    """
    weights = normalized_weights(weights, len(members))
    if weights is not None:  # 0 times NaN is NaN: nothing of a member without weight comes through
        members = [member for member, weight in zip(members, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
    logits = torch.stack(list(members))  # (K, ..., C)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if activation == "identity":
        shares = logits.new_tensor(weights or [1 / len(logits)] * len(logits))  # (K,)
        return torch.tensordot(shares, logits, 1)  # (..., C)
    if activation == "sigmoid":
        yes, no = (_log_mean(F.logsigmoid(z), weights) for z in (logits, -logits))  # (..., C)
        return yes - no
    axis = class_axis if class_axis < 0 else class_axis + 1
    return _log_mean(logits.log_softmax(axis), weights)  # (..., C)


def _log_mean(logp: Tensor, weights: Sequence[float] | None) -> Tensor:
    """log(sum_k w_k p_k) over the first axis: `(K, ...)` to `(...)`."""
    if weights is None or min(weights) == max(weights):
        return logp.logsumexp(0) - math.log(len(logp))
    log_weights = logp.new_tensor([math.log(weight) for weight in weights])  # (K,)
    return (logp + log_weights.view(-1, *[1] * (logp.ndim - 1))).logsumexp(0)


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
