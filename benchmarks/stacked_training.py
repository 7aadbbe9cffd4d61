"""Do small students of one architecture train faster stacked (torch.func, vmap) than in turn?

    python -m benchmarks.stacked_training [--rounds 15] [--quick]

A step is forward, backward and SGD update of every student, on the same images, against the same
teacher's probabilities. A ratio above 1: stacked is slower.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ban_hf import create_classifier
from benchmarks import report
from benchmarks.timing import interleave, median, ratio, timed
from benchmarks.trainers import LEARNING_RATE, MOMENTUM
from benchmarks.workloads import CLASSES, Tiny

STUDENTS = 4
IN_TURN, STACKED = "in turn", "stacked"
VIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
CASES = {
    "perceptron, 16 units": (Tiny, 8, 128),
    "ViT, 2 layers of 64": (
        lambda: create_classifier("vit_tiny_patch16_224", num_labels=CLASSES, **VIT),
        32,
        32,
    ),
    "cifar_wrn_10_1": (lambda: create_classifier("cifar_wrn_10_1", num_labels=CLASSES), 32, 64),
}  # network, size of its images, batch


class InTurn:
    """One student after another, as `BANTrainer` trains them."""

    def __init__(self, students: list[nn.Module], images: Tensor, target: Tensor) -> None:
        self.students, self.images, self.target = students, images, target
        self.optimizers = [
            torch.optim.SGD(student.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
            for student in students
        ]

    def __call__(self) -> None:
        for student, optimizer in zip(self.students, self.optimizers, strict=True):
            optimizer.zero_grad()
            logits = student(pixel_values=self.images).logits
            F.cross_entropy(logits, self.target).backward()
            optimizer.step()


class Stacked:
    """All students as one vectorized call over stacked parameters and buffers."""

    def __init__(self, students: list[nn.Module], images: Tensor, target: Tensor) -> None:
        self.images, self.target = images, target
        parameters, self.buffers = stack_module_state(students)
        self.parameters = {name: value.detach() for name, value in parameters.items()}
        self.base = copy.deepcopy(students[0]).to("meta")
        self.optimizer = torch.optim.SGD(
            self.parameters.values(), lr=LEARNING_RATE, momentum=MOMENTUM
        )
        self.gradients = vmap(grad(self._loss), in_dims=(0, 0), randomness="different")

    def _loss(self, parameters: dict, buffers: dict) -> Tensor:
        given = {"pixel_values": self.images}
        logits = functional_call(self.base, (parameters, buffers), (), given).logits
        return F.cross_entropy(logits, self.target)

    def __call__(self) -> None:
        with sdpa_kernel(SDPBackend.MATH):  # the one attention that vmap can batch
            gradients = self.gradients(self.parameters, self.buffers)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        self.optimizer.step()


def measure(name: str, rounds: int) -> tuple[list[str], dict]:
    """One row of the table, and the times."""
    build, size, batch = CASES[name]
    device = report.device()
    torch.manual_seed(0)
    students = [build().to(device).train() for _ in range(STUDENTS)]
    images = torch.randn(batch, 3, size, size, device=device)
    target = torch.randn(batch, CLASSES, device=device).softmax(1)
    together = Stacked(students, images, target)
    turn = InTurn(students, images, target)
    turn()
    together()
    after = [dict(student.named_parameters()) for student in students]
    difference = max(
        (stack[i] - after[i][key]).abs().max().item()
        for key, stack in together.parameters.items()
        for i in range(STUDENTS)
    )
    forms = {IN_TURN: timed(turn, device), STACKED: timed(together, device)}
    times = interleave(forms, rounds, warm_up=2)
    middle, low, high = ratio(times, STACKED, IN_TURN)
    cells = [f"{1000 * median(times[form]):.1f}" for form in forms]
    row = [name, batch, *cells, f"{middle:.2f}", report.spread(low, high), f"{difference:.0e}"]
    return row, times


def main() -> None:
    options = report.parse(report.parser(__doc__, rounds=15))
    measured = {name: measure(name, options.rounds) for name in CASES}
    head = [
        "network", "batch", "in turn, ms", "stacked, ms", "ratio", "its quartiles",
        "largest difference of weights",
    ]  # fmt: skip
    parts = [
        f"{STUDENTS} students, float32, medians of {options.rounds} interleaved steps. A ratio "
        "above 1: stacked is slower. The difference is that of the weights after one step.",
        report.table(head, [row for row, _ in measured.values()]),
    ]
    title = f"{STUDENTS} students of one architecture: stacked against in turn"
    numbers = {"seconds_per_step": {name: times for name, (_, times) in measured.items()}}
    report.write("stacked_training", options, title, parts, numbers)


if __name__ == "__main__":
    main()
