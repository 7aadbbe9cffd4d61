"""What does the loss of label and teacher cost as one chunked pass, against two separate terms?

    python benchmarks/mixed_cross_entropy.py [--repeats 15] [--output benchmarks/results/FILE.md]

Three forms of loss and gradient are timed in turn, A B C A B C ..., in one process, so that a
machine whose speed drifts slows all; the figures to read are the ratios of the medians. The one
pass also gives what `BANTrainer` logs of each step, which the separate terms do not.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ban_hf.comparison import mixed_cross_entropy
from ban_hf.facts import hardware, versions
from ban_hf.objectives import kd

CASES = [(128, 100), (1120, 1_000), (1120, 10_000), (280, 50_000)]  # items, classes


def separate(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The objective and the label cross-entropy, each over all logits."""
    return kd(z, t).sum() + F.cross_entropy(z, labels, reduction="sum")


def one_pass(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """What `BANTrainer` computes for BAN+L."""
    return mixed_cross_entropy(z, t, labels, teacher_weight=1.0, label_weight=1.0)[0]


def labels_alone(z: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """No teacher, for scale."""
    return F.cross_entropy(z, labels, reduction="sum")


FORMS = (separate, one_pass, labels_alone)


def seconds(form: Callable[[Tensor, Tensor, Tensor], Tensor], *tensors: Tensor) -> float:
    """Wall time of a form and its gradient, the GPU's work included."""
    started = time.perf_counter()
    torch.autograd.grad(form(*tensors), tensors[0])
    if tensors[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(items: int, classes: int, repeats: int, device: str) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    z = torch.randn(items, classes, device=device, requires_grad=True)  # (N, C)
    t = 2 * torch.randn(items, classes, device=device)  # (N, C)
    labels = torch.randint(0, classes, (items,), device=device)  # (N,)
    gradients = [torch.autograd.grad(form(z, t, labels), z)[0] for form in FORMS[:2]]
    difference = (gradients[0] - gradients[1]).abs().max().item()
    times: dict[str, list[float]] = {form.__name__: [] for form in FORMS}
    for repeat in range(repeats + 2):
        for form in FORMS:
            elapsed = seconds(form, z, t, labels)
            if repeat >= 2:  # the first two warm up
                times[form.__name__].append(1000 * elapsed)
    apart, one, label = (statistics.median(times[form.__name__]) for form in FORMS)
    return (
        f"| {items:,} | {classes:,} | {apart:.1f} | {one:.1f} | {label:.1f} "
        f"| {one / apart:.2f} | {one / label:.2f} | {difference:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each form")
    parser.add_argument("--output", type=Path, help="Markdown file; by default the terminal alone")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [measure(*case, options.repeats, device) for case in CASES]
    head = [
        "items", "classes", "separate, ms", "one pass, ms", "labels alone, ms",
        "one pass / separate", "one pass / labels alone", "largest difference of gradients",
    ]  # fmt: skip
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    report = "\n".join(
        [
            "# Label and teacher in one pass",
            "",
            f"Medians of {options.repeats} interleaved calls of loss and gradient. {hardware()}, "
            f"{torch.get_num_threads()} threads. {packages}.",
            "",
            "```bash",
            f"python benchmarks/mixed_cross_entropy.py --repeats {options.repeats}",
            "```",
            "",
            f"| {' | '.join(head)} |",
            "|" + " ---: |" * len(head),
            *rows,
        ]
    )
    print(report)
    if options.output:
        options.output.write_text(report + "\n", "utf-8")


if __name__ == "__main__":
    main()
