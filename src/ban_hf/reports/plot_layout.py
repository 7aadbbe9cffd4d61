"""Where each generation stands on the horizontal axis of a picture, and what that says.

In a sequence a generation stands at its number. Where several objectives are compared, entries have
a `method`, and each method has a part of the axis to itself, its generations from left to right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GAP = 2  # generations between the last one of a method and the first one of the next


@dataclass(frozen=True)
class Axis:
    """The horizontal axis.

    Attributes:
        origins: where generation 0 of each method stands, or would; None is that of a sequence.
        ticks: places, and what is written there.
        limits: the places at both ends.
        title: of the axis.
    """

    origins: Mapping[str | None, float]
    ticks: Mapping[float, str]
    limits: tuple[float, float]
    title: str

    def place(self, entry: Mapping[str, Any]) -> float:
        """Of a generation; of an ensemble that of its last member."""
        number = entry["generation"] if "generation" in entry else max(entry["members"])
        return float(self.origins[entry.get("method")] + number)


def axis_of(generations: Sequence[Mapping[str, Any]]) -> Axis:
    """The axis of a sequence, or of several methods.

    Args:
        generations: the rows of a results dictionary, see `lineage.results`.
    """
    methods: dict[str | None, list[int]] = {}
    for row in generations:
        methods.setdefault(row.get("method"), []).append(row["generation"])
    if None in methods:
        return _of_a_sequence(methods[None])
    origins: dict[str | None, float] = {}
    ticks, at = {}, 0.0
    for method, numbers in methods.items():
        length = numbers[-1] - numbers[0]
        origins[method] = at - numbers[0]
        ticks[at + length / 2] = f"{method}\n{_span(numbers)}"
        at += length + GAP
    return Axis(origins, ticks, (-0.8, at - GAP + 0.8), "Objective, and the generations with it")


def _of_a_sequence(numbers: Sequence[int]) -> Axis:
    places = range(min(numbers), max(numbers) + 1)
    ticks = {float(k): str(k) if k else "0\n(labels)" for k in places}
    return Axis({None: 0.0}, ticks, (places[0] - 0.4, places[-1] + 0.25), "Generation")


def _span(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first} {'and' if last == first + 1 else 'to'} {last}"
