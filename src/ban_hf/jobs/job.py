"""What a cell of a table is made by: a training, or an ensemble of trainings, named by its content.

A job's name ends in a digest of all that decides its result: the arguments, the jobs that teach it,
and the code. What is finished under that name need not be made again, whichever table asks for it,
and what other arguments or other code have made is never taken for it.
"""

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ban_hf.lineage.environment import versions
from ban_hf.lineage.files import sha256_of_file, sha256_of_json

ROOT = Path(__file__).parents[1]
#: The module that makes results: its code, and all of ours that it imports, decides them.
MAKER = "ban_hf.jobs.networks"
#: Packages whose release may change a result.
DECIDING = ("torch", "transformers", "accelerate", "timm")


@dataclass(frozen=True, eq=False)
class Job:
    """A network to train, or an ensemble to measure.

    Attributes:
        arguments: plain data: `task`, `dataset`, `network` (`name`, `args`), `training` (fields of
            `BANTrainingArguments`, with its `seed`), `share_ends`; of an ensemble `task` and
            `dataset` alone.
        teachers: what it learns from: nothing (labels alone), a network, or several, whose mean
            prediction it then learns.
        members: of an ensemble, which is not trained.
    """

    arguments: dict[str, Any]
    teachers: tuple["Job", ...] = ()
    members: tuple["Job", ...] = ()

    @property
    def before(self) -> tuple["Job", ...]:
        """The jobs whose networks it needs."""
        return self.teachers + self.members

    @cached_property
    def arguments_sha256(self) -> str:
        """Of its arguments, and of those of all jobs that it needs."""
        before = {
            part: [job.arguments_sha256 for job in getattr(self, part)]
            for part in ("teachers", "members")
        }
        return sha256_of_json(self.arguments | before)

    @cached_property
    def name(self) -> str:
        """Its folder: words for people, then what identifies it."""
        digest = sha256_of_json([self.arguments_sha256, code_sha256()])[:12]
        if self.members:
            return f"ensemble-of-{len(self.members)}-{digest}"
        training = self.arguments["training"]
        objective = training["objective"] if self.teachers else "labels"
        return f"{self.arguments['network']['name']}-{objective}-{digest}"

    @property
    def cache_name(self) -> str | None:
        """What tells the cache of its teachers' outputs for its views; None without a teacher."""
        if not self.teachers or self.arguments["task"] != "image":
            return None
        teachers = [job.name for job in self.teachers]
        return sha256_of_json([teachers, self.arguments["training"]["seed"]])[:12]


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all that they need, each once, each after what it needs."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        for earlier in job.before:
            add(earlier)
        found.setdefault(job.name, job)

    for job in jobs:
        add(job)
    return list(found.values())


@functools.cache
def code_sha256() -> str:
    """Of the code that makes results: our modules, and the releases of what they stand on."""
    sources = {str(path.relative_to(ROOT)): sha256_of_file(path) for path in sources_of(MAKER)}
    return sha256_of_json([sources, {name: versions()[name] for name in DECIDING}])


def sources_of(module: str) -> list[Path]:
    """The file of a module of ours, and of all of ours that it imports, directly or not.

    Read from the source: the package itself (`import ban_hf`) imports everything, and is left out.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else _file_of(name)
        if path is not None:
            found[name] = path
            waiting += _imports(name, path)
    return sorted(set(found.values()))


def _file_of(name: str) -> Path | None:
    """The file of a module of ours; None of a name in a module, of the package, of others."""
    head, *parts = name.split(".")
    if head != "ban_hf" or not parts:
        return None
    path = ROOT.joinpath(*parts)
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imports(name: str, path: Path) -> Iterator[str]:
    """The modules that a file imports, and the names that may be modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
            yield module.rpartition(".")[0]  # importing a module runs its package, too
