"""What does the loss of label and teacher cost as one chunked pass, against two separate terms?

    python -m benchmarks.mixed_cross_entropy [--rounds 15] [--quick]

A call is loss and gradient. The one pass also gives what `BANTrainer` logs of each step, which the
separate terms do not. Memory is what a call takes at its peak beyond both networks' logits, the
gradient included, which is as large as one network's; in a process of its own.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ban_hf.objectives import kd
from ban_hf.tasks.base import Items
from ban_hf.training.loss import mixed_cross_entropy
from benchmarks import report
from benchmarks.timing import PeakMemory, Times, in_fresh_process, interleave, median, ratio, timed

CASES = [(128, 100), (1120, 1_000), (1120, 10_000), (280, 50_000)]  # items, classes
QUICK_CASES = [(128, 100), (64, 1_000)]


def separate(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The objective and the label cross-entropy, each over all logits."""
    return kd(z, t).sum() + F.cross_entropy(z, labels, reduction="sum")


def one_pass(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """What `BANTrainer` computes for BAN+L."""
    items = Items(t, labels, torch.ones(len(t), device=t.device), rows=len(t))
    return mixed_cross_entropy(z, items, teacher_weight=1.0, label_weight=1.0)[0]


def labels_alone(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """No teacher, for scale."""
    return F.cross_entropy(z, labels, reduction="sum")


SEPARATE, ONE_PASS, LABELS = "separate", "one pass", "labels alone"
FORMS = {SEPARATE: separate, ONE_PASS: one_pass, LABELS: labels_alone}


def logits_and_labels(items: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of student `(N, C)` and teacher `(N, C)`; labels `(N,)`."""
    torch.manual_seed(0)
    device = report.device()
    z = torch.randn(items, classes, device=device, requires_grad=True)  # (N, C)
    t = torch.randn(items, classes, device=device).mul_(2)  # (N, C)
    return z, t, torch.randint(0, classes, (items,), device=device)


def gradient(form: Callable[[Tensor, Tensor, Tensor], Tensor], *tensors: Tensor) -> Tensor:
    """Of a form of the loss with respect to the student's logits."""
    return torch.autograd.grad(form(*tensors), tensors[0])[0]


def loss_times(items: int, classes: int, rounds: int) -> Times:
    """Seconds of loss and gradient in each form."""
    tensors = logits_and_labels(items, classes)
    calls = {name: partial(gradient, form, *tensors) for name, form in FORMS.items()}
    forms = {name: timed(call, report.device()) for name, call in calls.items()}
    return interleave(forms, rounds, warm_up=2)


def memory_of(name: str, items: int, classes: int) -> float:
    """Peak of memory of a form beyond the logits, in MiB; run in a process of its own."""
    gradient(FORMS[name], *logits_and_labels(2, 2))  # what torch keeps from its first call on
    tensors = logits_and_labels(items, classes)
    with PeakMemory(report.device()) as peak:
        gradient(FORMS[name], *tensors)
    return peak.mib


def measure(items: int, classes: int, rounds: int) -> tuple[list[str], dict]:
    """One row of the table, and the numbers."""
    tensors = logits_and_labels(items, classes)
    gradients = [gradient(form, *tensors) for form in (separate, one_pass)]
    difference = (gradients[0] - gradients[1]).abs().max().item()
    times = loss_times(items, classes, rounds)
    memory = {name: in_fresh_process(memory_of, name, items, classes) for name in FORMS}
    middle, low, high = ratio(times, ONE_PASS, SEPARATE)
    row = [f"{items:,}", f"{classes:,}"]
    row += [f"{1000 * median(times[name]):.1f}" for name in FORMS]
    row += [f"{middle:.2f}", report.spread(low, high)]
    row += [f"{ratio(times, ONE_PASS, LABELS)[0]:.2f}", f"{difference:.0e}"]
    row += [f"{items * classes * 4 / 2**20:.1f}", *(f"{memory[name]:.1f}" for name in FORMS)]
    numbers = {"items": items, "classes": classes, "seconds": times, "peak_mib": memory}
    return row, numbers


def main() -> None:
    options = report.parse(report.parser(__doc__, rounds=15))
    cases = QUICK_CASES if options.quick else CASES
    measured = [measure(*case, options.rounds) for case in cases]
    head = [
        "items", "classes", "separate, ms", "one pass, ms", "labels alone, ms",
        "one pass / separate", "its quartiles", "one pass / labels alone",
        "largest difference of gradients", "one network's logits, MiB",
        "peak of separate, MiB", "of one pass, MiB", "of labels alone, MiB",
    ]  # fmt: skip
    parts = [
        f"Medians of {options.rounds} interleaved calls of loss and gradient. The peak of memory "
        "is what a call takes beyond the logits, its gradient included.",
        report.table(head, [row for row, _ in measured]),
    ]
    numbers = {"cases": [numbers for _, numbers in measured]}
    report.write("mixed_cross_entropy", options, "Label and teacher in one pass", parts, numbers)


if __name__ == "__main__":
    main()
