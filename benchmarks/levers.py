"""What could make a hand-written distillation step faster on this machine, and what holds it back?

    python -m benchmarks.levers [--rounds 5] [--quick]

Each way is tried on the same step, of a Wide-ResNet-16-2 taught by another, by itself or on top of
channels-last. A profile tells what share of the step is convolution, and a product of large
matrices how much of what this machine can compute at most that is.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.timing import interleave, median, ratio, timed
from benchmarks.workloads import WORKLOADS

MODEL, TEACHER_BATCH, SIDE = "Wide-ResNet-16-2", 32, 2048
BASE, CHANNELS_LAST = "float32", "channels-last"


class Step:
    """An optimizer step without an optimizer: the teacher's forward, the student's both passes."""

    def __init__(self, batch: int, *, last: bool = False, compiled: bool = False) -> None:
        layout = torch.channels_last if last else torch.contiguous_format
        networks = [WORKLOADS[MODEL].network(seed).to(report.device()) for seed in (0, 1)]
        teacher, student = (network.to(memory_format=layout) for network in networks)
        self.student, self.teacher = student.train(), teacher.eval().requires_grad_(False)
        if compiled:
            self.student, self.teacher = torch.compile(self.student), torch.compile(self.teacher)
        pixels = torch.randn(batch, 3, 32, 32, device=report.device())
        self.pixels = pixels.contiguous(memory_format=layout)  # (N, 3, H, W)

    def __call__(
        self, *, bfloat16: bool = False, teacher_batch: int | None = None, asks: bool = True
    ) -> None:
        with torch.autocast(report.device().type, torch.bfloat16, enabled=bfloat16):
            with torch.inference_mode():
                parts = self.pixels.split(teacher_batch or len(self.pixels)) if asks else ()
                logits = [self.teacher(pixel_values=part).logits for part in parts]  # each (n, C)
            student = self.student(pixel_values=self.pixels).logits  # (N, C)
        target = torch.cat(logits).float().softmax(1) if asks else student.detach().softmax(1)
        F.cross_entropy(student.float(), target.clone()).backward()
        self.student.zero_grad()


def ways(batch: int) -> dict[str, Callable[[], None]]:
    """Each way, by its name."""
    plain, last = Step(batch), Step(batch, last=True)
    both = Step(batch, last=True, compiled=True)
    return {
        BASE: plain,
        CHANNELS_LAST: last,
        "bfloat16 (autocast)": lambda: plain(bfloat16=True),
        "bfloat16 and channels-last": lambda: last(bfloat16=True),
        "channels-last, torch.compile of both": both,
        f"channels-last, teacher {TEACHER_BATCH} at a time": lambda: last(
            teacher_batch=TEACHER_BATCH
        ),
        "channels-last, teacher not asked (cached)": lambda: last(asks=False),
    }


def convolution_share(step: Callable[[], None]) -> float:
    """Of the step's time on the device."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(e.self_cpu_time_total for e in events if "convolution" in e.key) / total


def operations(step: Callable[[], None]) -> float:
    """Floating-point operations of a step."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def best_product(side: int) -> float:
    """Floating-point operations a second of the best of some products of large matrices."""
    a = torch.randn(side, side, device=report.device())  # (side, side)
    fastest = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * side**3 / fastest


def main() -> None:
    options = report.parse(report.parser(__doc__, rounds=5))
    batch = 8 if options.quick else WORKLOADS[MODEL].batch
    tried = ways(batch)
    forms = {name: timed(way, report.device()) for name, way in tried.items()}
    times = interleave(forms, options.rounds, warm_up=1)
    rows = [
        [name, f"{1000 * median(times[name]):.0f}", f"{ratio(times, name, BASE)[0]:.2f}",
         report.spread(*ratio(times, name, BASE)[1:])]
        for name in times
    ]  # fmt: skip
    share, count = convolution_share(tried[CHANNELS_LAST]), operations(tried[BASE])
    peak = best_product(SIDE // 8 if options.quick else SIDE)
    least = count / peak / median(times[BASE])
    parts = [
        f"{MODEL}, batch {batch}. Medians of {options.rounds} interleaved rounds.",
        report.table(["way", "ms", f"to {BASE}", "its quartiles"], rows),
        f"A step is {count / 1e9:.0f} billion floating-point operations, {100 * share:.0f} % of it "
        f"convolutions (channels-last, by time). A product of {SIDE} x {SIDE} matrices in "
        f"float32 runs at {peak / 1e9:.0f} billion a second here: at that speed, and with nothing "
        f"beside it, the step would take {least:.2f} of the first line.",
    ]
    data = {"seconds": times, "operations": count, "share": share, "peak": peak}
    report.write("levers", options, "What makes a step faster here", parts, data)


if __name__ == "__main__":
    main()
