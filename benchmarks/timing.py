"""Forms of the same work, timed in turn, so that a machine whose speed drifts slows them all.

What is compared are ratios of medians. The spread of a ratio is that of its rounds, in each of
which the forms ran one after another.
"""

import concurrent.futures
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

Form = Callable[[], list[float]]  # does its work once: the seconds of each of its steps
Times = dict[str, list[list[float]]]  # of each form, by round

RESET_PEAK = "5"  # what the kernel takes, in clear_refs, for forgetting the peak of memory


class Clock:
    """Seconds between ticks; of a GPU by its own events, so that no step waits for it."""

    def __init__(self, device: torch.device | str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.ticks: list[Any] = []

    def tick(self) -> None:
        """Note that a step ends here."""
        if self.on_gpu:
            self.ticks.append(torch.cuda.Event(enable_timing=True))
            self.ticks[-1].record()
        else:
            self.ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each tick and the next; then nothing is noted any more."""
        pairs = list(itertools.pairwise(self.ticks))
        self.ticks = []
        if not self.on_gpu:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class StepClock(TrainerCallback):
    """Ticks at the end of every optimizer step of a `Trainer`."""

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by `Trainer`."""
        self.clock.tick()


def timed(call: Callable[[], object], device: torch.device | str) -> Form:
    """A function as a form of one step."""
    clock = Clock(device)

    def form() -> list[float]:
        clock.tick()
        call()
        clock.tick()
        return clock.seconds()

    return form


def interleave(forms: Mapping[str, Form], rounds: int, *, warm_up: int = 0) -> Times:
    """Run the forms in turn, every other round backwards; rounds that warm up are left out."""
    times: Times = {name: [] for name in forms}
    for index in range(warm_up + rounds):
        for name in list(forms)[:: -1 if index % 2 else 1]:
            seconds = forms[name]()
            if index >= warm_up:
                times[name].append(seconds)
    return times


def median(rounds: Sequence[Sequence[float]]) -> float:
    """Of all steps of all rounds."""
    return statistics.median(itertools.chain.from_iterable(rounds))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The 25 and the 75 % quantile; of a single value, twice that."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratio(times: Times, form: str, base: str) -> tuple[float, float, float]:
    """The ratio of two forms' medians, and the quartiles of that ratio over the rounds."""
    by_round = [
        statistics.median(ours) / statistics.median(theirs)
        for ours, theirs in zip(times[form], times[base], strict=True)
    ]
    return median(times[form]) / median(times[base]), *quartiles(by_round)


def difference(times: Times, form: str, base: str) -> tuple[float, float, float]:
    """By how many seconds a step of a form is longer: the medians', and its quartiles by round."""
    by_round = [
        statistics.median(ours) - statistics.median(theirs)
        for ours, theirs in zip(times[form], times[base], strict=True)
    ]
    return median(times[form]) - median(times[base]), *quartiles(by_round)


class PeakMemory:
    """MiB that a block of code takes at most, beyond what there was when this was made.

    `peak = PeakMemory(device)`, then `with peak:`. On a GPU what tensors take there; else what the
    process takes of the machine's memory, of which the kernel keeps a peak, which the block
    resets. Measured in a process of its own (`in_fresh_process`), since memory that was used before
    and kept is used again unseen.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.before = torch.cuda.memory_allocated() if self.on_gpu else resident("VmRSS")
        self.mib = 0.0

    def __enter__(self) -> "PeakMemory":
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text(RESET_PEAK, "utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM")
        self.mib = (peak - self.before) / 2**20


def resident(field: str) -> int:
    """Bytes of memory that this process takes: VmRSS is what now, VmHWM the most so far."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"The kernel does not say {field} of a process.")


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the script gives in a process of its own, whose imports are made once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ban_hf.training.trainer", "datasets", "timm"])
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()
