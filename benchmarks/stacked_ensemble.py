"""Does an ensemble of one architecture run faster stacked (torch.func, vmap) than in turn?

    python benchmarks/stacked_ensemble.py [--repeats 15] [--output benchmarks/results/FILE.md]

Both forms are timed in turn, A B A B ..., in one process, so that a machine whose speed drifts
slows both; the figure to read is the ratio of the medians. Nothing is downloaded.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import ban_hf
from ban_hf.ensemble import mean_logits
from ban_hf.facts import hardware, versions

MEMBERS = 3
CASES = [
    ("cifar_wrn_16_1", {}, 1),
    ("cifar_wrn_16_1", {}, 128),
    ("cifar_wrn_10_2", {"stem_stride": 2}, 1),
    ("cifar_wrn_10_2", {"stem_stride": 2}, 128),
    ("cifar_densenet_22_12", {}, 128),
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}, 1),
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}, 32),
]


def in_turn(members: list[nn.Module], images: Tensor) -> Tensor:
    """One member after another, as `BornAgainEnsemble` runs them: (N, 3, H, W) to (N, C)."""
    return mean_logits([member(pixel_values=images).logits for member in members])


def stacked(members: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """All members as one vectorised call over stacked parameters and buffers."""
    parameters, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")

    def member(parameters: dict, buffers: dict, images: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (), {"pixel_values": images}).logits

    every_member = vmap(member, in_dims=(0, 0, None))
    return lambda images: mean_logits(list(every_member(parameters, buffers, images)))


def seconds(call: Callable[[], Tensor], device: str) -> float:
    """Wall time of a call, the GPU's work included."""
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, model_args: dict, batch: int, repeats: int, device: str) -> str:
    """One row of the table."""
    members = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        model = ban_hf.create_classifier(name, num_labels=100, image_size=32, **model_args)
        members.append(model.to(device).eval())
    images = torch.randn(batch, 3, 32, 32, device=device)
    together = stacked(members)
    calls = {"in turn": lambda: in_turn(members, images), "stacked": lambda: together(images)}
    difference = (calls["in turn"]() - calls["stacked"]()).abs().max().item()
    times: dict[str, list[float]] = {key: [] for key in calls}
    for repeat in range(repeats + 2):
        for key, call in calls.items():
            elapsed = seconds(call, device)
            if repeat >= 2:  # the first two warm up
                times[key].append(1000 * elapsed)
    turn, stack = (statistics.median(times[key]) for key in calls)
    spread = "–".join(f"{b / a:.2f}" for a, b in zip(*quartiles(times), strict=True))
    return (
        f"| {name} {model_args or ''} | {batch} | {turn:.1f} | {stack:.1f} | {stack / turn:.2f} "
        f"| {spread} | {difference:.0e} |"
    )


def quartiles(times: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """The 25 and 75 % quantiles of both forms."""
    turn, stack = (statistics.quantiles(values, n=4) for values in times.values())
    return [turn[0], turn[2]], [stack[0], stack[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each form")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [
        f"# Ensemble of {MEMBERS} networks of one architecture: stacked against in turn",
        "",
        f"`python benchmarks/stacked_ensemble.py --repeats {args.repeats}` · {hardware()}, "
        f"{torch.get_num_threads()} threads · inference, float32, median of {args.repeats} calls, "
        "interleaved; the ratio is that of the medians. A ratio above 1: stacked is slower.",
        "",
        "| network | batch | in turn, ms | stacked, ms | ratio | its quartiles | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with torch.inference_mode():
        for case in CASES:
            lines.append(measure(*case, args.repeats, device))
            print(lines[-1], flush=True)
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions().items())]
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
