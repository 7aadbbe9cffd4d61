"""A job: a network to train, or an ensemble to put together, and the jobs that it needs.

Jobs form a graph without cycles. A family is a chain of jobs, a table of the paper is many, a
control is a job without a teacher. A job is known by its folder: what is finished there is not done
again, and what other arguments have made is never taken for it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ban_hf.errors import BANError
from ban_hf.lineage.environment import versions
from ban_hf.lineage.files import sha256_of_json

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

#: Raised by one where a change of the code gives the same arguments another result, so that jobs of
#: tables that were finished before are done again. A comment or a new name changes no result.
RESULT_VERSION = 1
#: Packages whose release may change a result.
DECIDING = ("torch", "transformers", "accelerate", "timm")


@dataclass(frozen=True, eq=False)
class Job:
    """A network to train, or an ensemble of networks."""

    folder: str  # relative to the folder of all jobs of its graph: `generation-1`
    arguments: Mapping[str, Any]  # plain data that decide the result, beside the jobs it needs
    teachers: tuple["Job", ...] = ()  # none: labels alone; of several it learns the mean prediction
    members: tuple["Job", ...] = ()  # of an ensemble, which is not trained
    generation: int = 0  # for labels alone, else one more than the highest of its teachers'
    saved: bool = True  # whether the weights of an ensemble are kept, or only what it measured

    @property
    def needs(self) -> tuple["Job", ...]:
        """The jobs whose networks it needs."""
        return self.teachers + self.members

    @cached_property
    def digest(self) -> str:
        """sha256 of all that decides its result: its arguments, and those of the jobs it needs."""
        return sha256_of_json(
            {
                **self.arguments,
                "teachers": [teacher.digest for teacher in self.teachers],
                "members": [member.digest for member in self.members],
            }
        )


@dataclass(frozen=True)
class Setup:
    """What the trainings of a graph have in common beside their arguments: networks and data."""

    model_init: Callable[[int], "PreTrainedModel"]  # fresh, for a generation; torch is seeded
    train_dataset: "Dataset"
    eval_dataset: "Dataset | None" = None  # for validation while training
    test_dataset: "Dataset | None" = None  # each network is measured on it once, when finished
    #: Further arguments of `BANTrainer`: `data_collator`, `processing_class` and so on.
    trainer: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)  # what records say of it, plain JSON
    entropy: float | None = None  # of a test text under its source, nats per word, if known


def generation_seed(seed: int, generation: int) -> int:
    """The seed of a generation of a family, in [0, 2^31): fresh, and a function of both."""
    return int(np.random.SeedSequence([seed, generation]).generate_state(1)[0] >> 1)


def code_digest() -> str:
    """sha256 of what decides a result beside the arguments: the versions of the code."""
    return sha256_of_json([RESULT_VERSION, {name: versions()[name] for name in DECIDING}])


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all that they need, each once, each after what it needs.

    Raises:
        BANError: if a job needs itself, or two that differ have one folder.
    """
    found: dict[str, Job] = {}

    def add(job: Job, above: tuple[Job, ...]) -> None:
        if job in above:
            chain = " -> ".join(each.folder for each in (*above, job))
            raise BANError(f"job {job.folder} needs itself: {chain}.")
        for earlier in job.needs:
            add(earlier, (*above, job))
        if found.setdefault(job.folder, job).digest != job.digest:
            raise BANError(f"two different jobs have the folder {job.folder}.")

    for job in jobs:
        add(job, ())
    return list(found.values())
