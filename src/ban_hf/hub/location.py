"""Where a record and its files are: in a local folder, or in a commit of a Hub repository.

A commit, never a branch: its content cannot change. Both kinds of location have `fetch` (the local
path of a file), `names` (of all files) and `resolve_reference` (the location of a teacher or
member). What cannot be reached is an `UnverifiableError`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, ModelInfo

from ban_hf.errors import BANError, HubError, RecordError, UnpinnedTeacherError, UnverifiableError
from ban_hf.hub.client import with_retries
from ban_hf.lineage.files import sha256_of_file
from ban_hf.lineage.record import RECORD, Reference

T = TypeVar("T")

COMMIT = re.compile(r"[0-9a-f]{40}")
#: A generation in a folder, by the sha256 of its record: a name that shows no path.
LOCAL_GENERATION = re.compile(r"generation-(\d+)@[0-9a-f]{64}")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LocalPath:
    """The folder of a generation or an ensemble."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def load_arguments(self) -> dict[str, str]:
        """As arguments of `from_pretrained`."""
        return {"pretrained_model_name_or_path": str(self.path)}

    def absolute(self) -> "LocalPath":
        """The same folder by its absolute path; links stay, since one may be to another disk."""
        return LocalPath(Path(os.path.abspath(self.path)))

    def fetch(self, name: str) -> Path:
        """The path of a file."""
        if not (self.path / name).is_file():
            raise UnverifiableError(f"{self.path} has no {name}.")
        return self.path / name

    def names(self) -> list[str]:
        """The paths of all files, relative to the folder."""
        files = (p for p in self.path.rglob("*") if p.is_file() or p.is_symlink())
        return sorted(path.relative_to(self.path).as_posix() for path in files)

    def resolve_reference(self, reference: Reference) -> "Location":
        """Where a teacher or member is: at its path, or beside this folder, or on the Hub."""
        if reference.path is not None:
            return LocalPath(self.path / reference.path).absolute()
        beside = self.absolute().path.parent / f"generation-{reference.generation}"
        record = beside / RECORD
        if record.is_file() and sha256_of_file(record) == reference.lineage_sha256:
            return LocalPath(beside)  # pulled together with this one
        return HubRevision(str(reference.repo_id), str(reference.revision))


@dataclass(frozen=True)
class HubRevision:
    """A commit of a model repository on the Hub."""

    repo_id: str
    revision: str
    token: str | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not COMMIT.fullmatch(self.revision):
            raise UnpinnedTeacherError(
                f"{self.repo_id} is named by revision {self.revision!r}, which can move: only a "
                "full commit of 40 hex digits names what it was."
            )

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"

    @property
    def load_arguments(self) -> dict[str, str]:
        """As arguments of `from_pretrained`."""
        return {"pretrained_model_name_or_path": self.repo_id, "revision": self.revision}

    def fetch(self, name: str) -> Path:
        """The path of a file, downloaded unless it is in the cache."""
        api = HfApi(token=self.token)
        file = _reach(
            f"{name} of {self}",
            lambda: api.hf_hub_download(self.repo_id, name, revision=self.revision),
        )
        return Path(file)

    def names(self) -> list[str]:
        """The paths of all files."""
        info = repo_info(self.repo_id, self.revision, self.token)
        if info.sha != self.revision:
            raise UnpinnedTeacherError(f"{self} is the name of a branch or tag, not a commit.")
        return sorted(sibling.rfilename for sibling in info.siblings or [])

    def resolve_reference(self, reference: Reference) -> "HubRevision":
        """Where a teacher or member is: a published record names no folder."""
        if reference.path is not None or reference.repo_id is None or reference.revision is None:
            raise RecordError(f"{self} names a folder for a teacher or member, not a repository.")
        return HubRevision(reference.repo_id, reference.revision, self.token)


Location = LocalPath | HubRevision


def repo_info(repo_id: str, revision: str | None = None, token: str | None = None) -> ModelInfo:
    """The Hub's facts of a repository at a revision (by default `main`), with all its files."""
    api = HfApi(token=token)
    return _reach(
        f"{repo_id}@{revision}" if revision else repo_id,
        lambda: api.model_info(repo_id, revision=revision, files_metadata=True),
    )


def _reach(what: str, call: Callable[[], T]) -> T:
    try:
        return with_retries(what, call)
    except HubError as error:
        raise UnverifiableError(str(error)) from error


def resolve(where: str | Path, revision: str | None = None, token: str | None = None) -> Location:
    """The location of a folder, or of `"ns/name"` or `"ns/name@revision"` at its current commit."""
    if Path(where).is_dir():
        if revision is not None:
            raise BANError(f"revision={revision!r}: {where} is a local folder, which has none.")
        return LocalPath(Path(where))
    repo_id, _, named = str(where).partition("@")
    if not REPOSITORY.fullmatch(repo_id):
        raise UnverifiableError(
            f"{str(where)!r} is neither an existing folder nor a repository, 'ns/name' or "
            "'ns/name@revision'."
        )
    if named and revision not in (None, named):
        raise BANError(f"revision={revision!r} and {where!r} name two revisions: give one.")
    revision = revision or named or "main"
    if not COMMIT.fullmatch(revision):
        revision = str(repo_info(repo_id, revision, token).sha)
    return HubRevision(repo_id, revision, token)
