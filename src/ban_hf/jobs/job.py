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
    """A network to train, or an ensemble of networks.

    Attributes:
        folder: where it is kept, relative to the folder of all jobs of its graph: `generation-1`.
        arguments: plain data, all that decides the result beside the jobs that it needs.
        teachers: what the network learns from: nothing (labels alone), one network, or several,
            whose mean prediction it then learns.
        members: of an ensemble, which is not trained.
        generation: 0 for labels alone, else one more than the highest of its teachers'.
        saved: whether the weights of an ensemble are kept, or only what it measured.
    """

    folder: str
    arguments: Mapping[str, Any]
    teachers: tuple["Job", ...] = ()
    members: tuple["Job", ...] = ()
    generation: int = 0
    saved: bool = True

    @property
    def needs(self) -> tuple["Job", ...]:
        """The jobs whose networks it needs."""
        return self.teachers + self.members

    @cached_property
    def digest(self) -> str:
        """sha256 of all that decides its result: its arguments, and those of the jobs it needs."""
        return digest(self.arguments, self.teachers, self.members)


@dataclass(frozen=True)
class Setup:
    """What the trainings of a graph have in common beside their arguments: networks and data.

    Attributes:
        model_init: a fresh network for a generation; torch is seeded for it beforehand.
        train_dataset: what all networks are trained on.
        eval_dataset: for validation while training.
        test_dataset: what each network is measured on once, when it is finished.
        trainer: further arguments of `BANTrainer`: `data_collator`, `processing_class`, ...
        data: what records say of the data, plain JSON.
        entropy: of a test text under its source, nats per word, where it is known.
    """

    model_init: Callable[[int], "PreTrainedModel"]
    train_dataset: "Dataset"
    eval_dataset: "Dataset | None" = None
    test_dataset: "Dataset | None" = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    entropy: float | None = None


def generation_seed(seed: int, generation: int) -> int:
    """The seed of a generation of a family, in [0, 2^31): fresh, and a function of both."""
    return int(np.random.SeedSequence([seed, generation]).generate_state(1)[0] >> 1)


def digest(
    arguments: Mapping[str, Any], teachers: Iterable[Job] = (), members: Iterable[Job] = ()
) -> str:
    """The digest of a job, before it has a folder that may be named after it."""
    return sha256_of_json(
        {
            **arguments,
            "teachers": [teacher.digest for teacher in teachers],
            "members": [member.digest for member in members],
        }
    )


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
        same = found.setdefault(job.folder, job)
        if same.digest != job.digest:
            raise BANError(f"two different jobs have the folder {job.folder}.")

    for job in jobs:
        add(job, ())
    return list(found.values())
