"""Does an ensemble of one architecture run faster stacked (torch.func, vmap) than in turn?

    python -m benchmarks.stacked_ensemble [--rounds 15] [--quick]

A ratio above 1: stacked is slower. Nothing is downloaded.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ban_hf import create_classifier
from ban_hf.tasks.base import mean_logits
from benchmarks import report
from benchmarks.timing import Times, interleave, median, ratio, timed
from benchmarks.workloads import CLASSES

MEMBERS = 3
IN_TURN, STACKED = "in turn", "stacked"
VIT = {"img_size": 32, "patch_size": 4}
CASES = [
    ("cifar_wrn_16_1", {}, 1),
    ("cifar_wrn_16_1", {}, 128),
    ("cifar_wrn_10_2", {"stem_stride": 2}, 1),
    ("cifar_wrn_10_2", {"stem_stride": 2}, 128),
    ("cifar_densenet_22_12", {}, 128),
    ("vit_tiny_patch16_224", VIT, 1),
    ("vit_tiny_patch16_224", VIT, 32),
]
QUICK_CASES = [("cifar_wrn_10_2", {"stem_stride": 2}, 1), ("vit_tiny_patch16_224", VIT, 1)]


def in_turn(members: list[nn.Module], images: Tensor) -> Tensor:
    """One member after another, as `BornAgainEnsemble` runs them: (N, 3, H, W) to (N, C)."""
    return mean_logits([member(pixel_values=images).logits for member in members])


def stacked(members: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """All members as one vectorized call over stacked parameters and buffers."""
    parameters, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")

    def member(parameters: dict, buffers: dict, images: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (), {"pixel_values": images}).logits

    every_member = vmap(member, in_dims=(0, 0, None))

    def call(images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the one attention that vmap can batch
            return mean_logits(list(every_member(parameters, buffers, images)))

    return call


def measure(name: str, model_args: dict, batch: int, rounds: int) -> tuple[list[str], Times]:
    """One row of the table, and the times."""
    members, device = [], report.device()
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        members.append(create_classifier(name, num_labels=CLASSES, **model_args).to(device).eval())
    images = torch.randn(batch, 3, 32, 32, device=device)
    together = stacked(members)
    calls = {IN_TURN: lambda: in_turn(members, images), STACKED: lambda: together(images)}
    difference = (calls[IN_TURN]() - calls[STACKED]()).abs().max().item()
    forms = {form: timed(call, device) for form, call in calls.items()}
    times = interleave(forms, rounds, warm_up=2)
    middle, low, high = ratio(times, STACKED, IN_TURN)
    what = " ".join([name, *(f"{key}={value}" for key, value in model_args.items())])
    cells = [f"{1000 * median(times[form]):.1f}" for form in forms]
    row = [what, batch, *cells, f"{middle:.2f}", report.spread(low, high), f"{difference:.0e}"]
    return row, times


@torch.inference_mode()
def main() -> None:
    options = report.parse(report.parser(__doc__, rounds=15))
    cases = QUICK_CASES if options.quick else CASES
    measured = [measure(*case, options.rounds) for case in cases]
    head = [
        "network", "batch", "in turn, ms", "stacked, ms", "ratio", "its quartiles",
        "largest difference of logits",
    ]  # fmt: skip
    parts = [
        f"Inference, float32, medians of {options.rounds} interleaved calls. A ratio above 1: "
        "stacked is slower.",
        report.table(head, [row for row, _ in measured]),
    ]
    title = f"Ensemble of {MEMBERS} networks of one architecture: stacked against in turn"
    numbers = [{"network": row[0], "batch": row[1], "seconds": times} for row, times in measured]
    report.write("stacked_ensemble", options, title, parts, {"cases": numbers})


if __name__ == "__main__":
    main()
