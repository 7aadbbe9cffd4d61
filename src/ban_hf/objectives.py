"""What a student minimises: one function per distillation objective.

Every objective has the signature

    objective(student_logits, teacher_logits, labels, *, temperature=1.0, generator=None,
              activation="softmax") -> Tensor

with logits `(N, C)`, labels `(N,)` and a result `(N,)`: one loss per item whose **mean is the loss
of the batch**. Gradients never reach the teacher. Half precision is promoted to float32, double
stays double, and the result is finite for every finite logit.

`activation` says what an item is: one class out of C (`softmax`); C labels that are true or not,
each of them a choice between two classes (`sigmoid`); or C numbers (`identity`). For the last two
labels are floats `(N, C)`, and the loss of an item is the mean over its C labels or numbers, as
transformers averages its label loss, so that the terms of a loss weigh alike.

Notation: z, t are the logits of student and teacher, q = softmax(z), p = softmax(t), `*` the index
of the label. Equation numbers are those of Furlanello et al., *Born-Again Neural Networks*,
ICML 2018 (https://arxiv.org/abs/1805.04770).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import Activation

Objective = Callable[..., Tensor]


def kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    activation: Activation = "softmax",
) -> Tensor:
    """Knowledge distillation, the objective of born-again networks.

    Formula: T^2 KL(p_T || q_T), with p_T = softmax(t / T) and q_T = softmax(z / T).
    Sigmoid: the mean over labels of T^2 KL(p_T || q_T) for two classes, with p_T = sigmoid(t / T).
    Identity: the mean over numbers of (z - t)^2, whatever T is.
    Gradient: of an item with respect to z, T (q_T - p_T), at T = 1 q - p (eq. 4); for `sigmoid`
    T (q_T - p_T) / C, for `identity` 2 (z - t) / C.
    Shapes: logits `(N, C)`; labels are not used; result `(N,)`.
    Reduction: the batch loss is the mean over the items.
    Requires: C >= 2 for `softmax`, T > 0.
    Relations: differs from the cross-entropy H(p, q) of eq. 2 by the teacher's entropy only, so
    their gradients are the same; equals the label cross-entropy when the teacher is certain of
    the label; is zero, with zero gradient, when teacher and student agree; for T -> infinity it
    tends to |(z - mean z) - (t - mean t)|^2 / (2 C). For `sigmoid` with one label it equals
    `softmax` over the logits (0, z).
    Reference: Furlanello et al. 2018, eq. 2-4; Hinton et al. 2015 for the factor T^2.
    """
    check_logits(student_logits, teacher_logits, temperature, activation)
    if activation == "identity":
        return label_losses(student_logits, teacher_logits.detach(), "identity")
    if activation == "sigmoid":
        pairs = _two_classes(student_logits), _two_classes(teacher_logits)  # (N C, 2) each
        return kd(*pairs, temperature=temperature).view(student_logits.shape).mean(1)
    student_logp = log_softmax(student_logits, temperature)  # (N, C)
    teacher_logp = log_softmax(teacher_logits.detach(), temperature)  # (N, C)
    return temperature**2 * _kl(teacher_logp, student_logp)


def cwtm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    activation: Activation = "softmax",
) -> Tensor:
    """Confidence weighted by teacher max: label learning, reweighted; no dark knowledge at all.

    Formula: N w_s H(y_s, q_s), with w_s = max_j p_{j,s} / sum_u max_j p_{j,u} over the batch,
    also where the teacher is wrong. The temperature softens the teacher's p alone.
    Sigmoid: N w_s H(y_s, q_s), where the maximum is the mean over labels of max(p, 1 - p), and H
    that of the binary cross-entropies.
    Gradient: of an item with respect to z, N w_s (q - onehot(y)).
    Shapes: logits `(N, C)`, labels `(N,)`; result `(N,)`.
    Reduction: the batch loss is the mean over the items. The weights depend on the whole batch:
    to split one, weight each part's mean by its sum of `confidence`.
    Requires: labels; not `identity`, since a number has no confidence.
    Relations: equals the label cross-entropy when the teacher is equally confident everywhere;
    tends to it as T -> infinity; does not change when the teacher's other classes are permuted.
    Reference: Furlanello et al. 2018, eq. 9-10.
    """
    check_logits(student_logits, teacher_logits, temperature, activation)
    item_confidence = confidence(teacher_logits, temperature, activation)  # (N,)
    weights = item_confidence / item_confidence.mean()  # (N,): N w_s
    return weights * label_losses(student_logits, _required(labels, "cwtm"), activation)


def dkpp(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    activation: Activation = "softmax",
) -> Tensor:
    """Dark knowledge with permuted predictions: `kd` from a teacher whose dark side is shuffled.

    Formula: T^2 KL(p'_T || q_T), p' = p with its non-argmax entries permuted, independently for
    each item; the permutations are drawn from `generator`.
    Gradient: of an item with respect to z, T (q_T - p'_T).
    Shapes: logits `(N, C)`; labels are not used; result `(N,)`.
    Reduction: the batch loss is the mean over the items.
    Requires: `softmax`, C >= 2, T > 0.
    Relations: each item's multiset of teacher probabilities, its argmax and its confidence stay;
    equals `kd` for two classes, and where the teacher is uniform off its argmax.
    Reference: Furlanello et al. 2018, eq. 11.
    """
    check_objective("dkpp", activation)
    check_logits(student_logits, teacher_logits, temperature)
    permuted_logits = permute_dark_knowledge(teacher_logits.detach(), generator)  # (N, C)
    return kd(student_logits, permuted_logits, temperature=temperature)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    activation: Activation = "softmax",
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
) -> Tensor:
    """Decoupled knowledge distillation: `kd` with its two halves weighted apart.

    Formula: T^2 (target_weight KL(b || b') + non_target_weight KL(p^ || q^)), where
    b = (p_*, 1 - p_*) and b' = (q_*, 1 - q_*) tell target from non-target, and p^, q^ are p, q
    without the target, renormalized; all of them at temperature T.
    Gradient: with respect to z_*, at T = 1, target_weight (q_* - p_*); with respect to z_i, i != *,
    target_weight (p_* - q_*) q^_i + non_target_weight (q^_i - p^_i).
    Shapes: logits `(N, C)`, labels `(N,)`; result `(N,)`.
    Reduction: the batch loss is the mean over the items.
    Requires: labels; `softmax`; C >= 2; T > 0.
    Relations: kd = target half + (1 - p_*) non-target half, so it equals `kd` item by item with
    non_target_weight = 1 - p_*; for two classes the non-target half is zero and it equals `kd`.
    Reference: Zhao et al., *Decoupled Knowledge Distillation*, CVPR 2022, eq. 7.
    """
    check_objective("dkd", activation)
    check_logits(student_logits, teacher_logits, temperature)
    labels = _required(labels, "dkd")
    rest = _all_but(labels, student_logits.shape[1])  # (N, C-1)
    target_kl, non_target_kl = (
        _kl(log_softmax(teacher), log_softmax(student))
        for teacher, student in zip(
            _decouple(teacher_logits.detach(), labels, rest, temperature),
            _decouple(student_logits, labels, rest, temperature),
            strict=True,
        )
    )
    return temperature**2 * (target_weight * target_kl + non_target_weight * non_target_kl)


OBJECTIVES: dict[str, Objective] = {"kd": kd, "cwtm": cwtm, "dkpp": dkpp, "dkd": dkd}


#: The activations that an objective has a meaning for, where these are not all.
MEANINGS: dict[str, tuple[Activation, ...]] = {
    "cwtm": ("softmax", "sigmoid"),
    "dkpp": ("softmax",),
    "dkd": ("softmax",),
}
NEED_LABELS = frozenset(("cwtm", "dkd"))  # of each item
#: What an item is, in words.
ITEMS: dict[Activation, str] = {
    "softmax": "one class out of several",
    "sigmoid": "several labels, each of them true or not",
    "identity": "numbers",
}


def check_objective(objective: str, activation: Activation) -> None:
    """Raise where an objective has no meaning for such items."""
    meanings = MEANINGS.get(objective, (activation,))
    if activation not in meanings:
        raise BANError(
            f"objective={objective!r} has no meaning for items that are {ITEMS[activation]}: it "
            f"needs {' or '.join(ITEMS[meaning] for meaning in meanings)}. Use objective='kd'."
        )


def label_losses(
    logits: Tensor, labels: Tensor, activation: Activation = "softmax", smoothing: float = 0.0
) -> Tensor:
    """The label loss of each item as transformers computes it: `(N, C)` to `(N,)`.

    Formula: -log q_y; for `sigmoid` the mean over labels of the binary cross-entropy, for
    `identity` that of (z - y)^2. With `smoothing` s, of the softmax, the target is
    (1 - s) onehot(y) + s / C.
    Shapes: labels `(N,)` for softmax, otherwise `(N, C)`.
    """
    if activation == "softmax":
        logp = log_softmax(logits)  # (N, C)
        losses = F.nll_loss(logp, labels, reduction="none")  # (N,)
        return (1 - smoothing) * losses - smoothing * logp.mean(1) if smoothing else losses
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(logits.dtype)  # (N, C)
    if activation == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)  # (N,)
    return (logits - labels).square().mean(1)  # (N,)


def confidence(
    teacher_logits: Tensor, temperature: float = 1.0, activation: Activation = "softmax"
) -> Tensor:
    """The teacher's maximum probability, max_j softmax(t / T)_j: `(N, C)` to `(N,)`.

    For `sigmoid` the mean over labels of max(p, 1 - p).
    """
    check_objective("cwtm", activation)
    if activation == "sigmoid":
        of_labels = confidence(_two_classes(teacher_logits), temperature)  # (N C,)
        return of_labels.view(teacher_logits.shape).mean(1)  # (N,)
    return log_softmax(teacher_logits.detach(), temperature).amax(1).exp()  # (N,)


def item_weights(
    objective: str,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    activation: Activation = "softmax",
) -> Tensor:
    """What an item counts for in the mean over a batch: `(N, C)` to `(N,)`.

    The batch loss of an objective is a weighted mean, sum(d_i l_i) / sum(d_i). A batch that is
    computed in parts is exact when each part's mean is weighted by the part's sum of d_i: the
    teacher's confidence for `cwtm`, one for every other objective.
    """
    if objective == "cwtm":
        return confidence(teacher_logits, temperature, activation)  # (N,)
    return torch.ones_like(teacher_logits[:, 0], dtype=torch.float32)  # (N,)


def permute_dark_knowledge(
    teacher_logits: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Permute the entries off each row's argmax, independently for each row: `(N, C)` to `(N, C)`.

    Softmax commutes with a permutation of the classes, so permuted logits are the logits of
    permuted probabilities. The noise is drawn on the generator's device, row by row.
    """
    n, c = teacher_logits.shape
    device = generator.device if generator is not None else teacher_logits.device
    noise = torch.rand(n, c - 1, generator=generator, device=device)  # (N, C-1)
    permutation = noise.to(teacher_logits.device).argsort(1)  # (N, C-1)
    rest = _all_but(teacher_logits.argmax(1), c)  # (N, C-1)
    dark_logits = teacher_logits.gather(1, rest).gather(1, permutation)  # (N, C-1)
    return teacher_logits.scatter(1, rest, dark_logits)  # (N, C)


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Give log softmax(logits / T) in at least float32, finite for all logits that the dtype holds.

    The difference of two huge logits can overflow, and 0 * inf is not a number; so the value, not
    the gradient, is clipped at a size (3e32 in float32) at which the softmax has long saturated.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limit = torch.finfo(logits.dtype).max * 2**-20 * min(temperature, 1 / temperature)
    clipped = logits.clamp(-limit, limit)
    if logits.requires_grad:
        clipped = logits + (clipped - logits).detach()
    if temperature != 1:
        clipped = clipped / temperature
    return clipped.log_softmax(1)


def _two_classes(logits: Tensor) -> Tensor:
    """Each label as a choice between no and yes: `(N, C)` to logits `(N C, 2)`, those of no 0."""
    return torch.stack([torch.zeros_like(logits), logits], -1).view(-1, 2)


def _kl(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """KL(p || q) of each row from log-probabilities: `(N, C)`, `(N, C)` to `(N,)`."""
    return F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(1)


def _all_but(index: Tensor, c: int) -> Tensor:
    """The C-1 class indices other than `index`, in order: `(N,)` to `(N, C-1)`."""
    others = torch.arange(c - 1, device=index.device)  # (C-1,)
    return others + (others >= index[:, None])  # (N, C-1)


def _decouple(
    logits: Tensor, labels: Tensor, rest: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target against the rest `(N, 2)`, and of the rest's classes `(N, C-1)`.

    The rest's mass is a log-sum-exp over its classes, never log(1 - p_*): that is what stays finite
    when p_* rounds to one.
    """
    logp = log_softmax(logits, temperature)  # (N, C)
    rest_logp = logp.gather(1, rest)  # (N, C-1)
    target_logp = logp.gather(1, labels[:, None])  # (N, 1)
    return torch.cat([target_logp, rest_logp.logsumexp(1, keepdim=True)], 1), rest_logp


def check_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    activation: Activation = "softmax",
) -> None:
    """Raise unless logits have the same shape `(N, C)`, and temperature is above 0.

    A softmax needs C >= 2.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise BANError(
            "student_logits and teacher_logits must have the same shape (N, C), but have "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}: flatten other axes "
            "into N, and give teacher and student the same classes."
        )
    if activation == "softmax" and student_logits.shape[1] < 2:
        raise BANError("logits must have at least two classes: of one there is nothing to learn.")
    if not temperature > 0:
        raise BANError(f"temperature must be above 0, not {temperature}; the paper uses 1.")


def _required(labels: Tensor | None, objective: str) -> Tensor:
    if labels is None:
        raise BANError(f"objective {objective!r} needs labels, but got labels=None.")
    return labels
