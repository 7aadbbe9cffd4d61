"""What goes wrong, and at which request."""

from dataclasses import dataclass, field

KINDS = {
    "error": "503, and nothing is done",
    "error_after": "the request is carried out, then answered with 503",
    "drop": "the connection is closed while the body is being read, and nothing is done",
    "drop_after": "the request is carried out, then the connection is closed without an answer",
    "cut": "carried out, then the connection is closed in the middle of the answer's body",
    "slow": "carried out, but answered only after some seconds",
    "stale": "a GET or HEAD is answered from before the last write; a write is carried out",
}


@dataclass(frozen=True)
class Fault:
    """One kind of failure, at the requests `first` to `last`."""

    kind: str
    first: int
    last: int
    seconds: float


@dataclass
class Faults:
    """The faults to come; where several meet at a request, the one that was asked for last."""

    to_come: list[Fault] = field(default_factory=list)

    def add(self, kind: str, first: int, times: int, seconds: float) -> None:
        if kind not in KINDS:
            raise ValueError(f"no such fault: {kind!r}; there are {', '.join(KINDS)}")
        self.to_come.append(Fault(kind, first, first + times - 1, seconds))

    def at(self, number: int) -> Fault | None:
        hits = [fault for fault in self.to_come if fault.first <= number <= fault.last]
        return hits[-1] if hits else None
