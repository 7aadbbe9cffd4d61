"""Where a record and its files stand: in a local folder, or in a commit of a Hub repository.

A commit, never a branch: what is behind it cannot change. Both kinds of place have `fetch` (a file
of it, as a local path), `names` (of all its files) and `named` (the place of a teacher or member).
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelInfo

from ban_hf.errors import BANError, HubError, RecordError, UnpinnedTeacherError, UnverifiableError
from ban_hf.hub.client import persistently
from ban_hf.lineage.record import RECORD, sha256_of_file

COMMIT = re.compile(r"[0-9a-f]{40}")
#: A generation of a folder, by the sha256 of its record: a name that tells no path.
LOCAL_GENERATION = re.compile(r"generation-(\d+)@[0-9a-f]{64}")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LocalFolder:
    """A folder of a generation or an ensemble."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def fetch(self, name: str) -> Path:
        """The path of a file.

        Raises:
            UnverifiableError: if it is not there.
        """
        if not (self.path / name).is_file():
            raise UnverifiableError(f"{self.path} has no {name}.")
        return self.path / name

    def names(self) -> list[str]:
        """All files, those in folders with their path."""
        files = (p for p in self.path.rglob("*") if p.is_file() or p.is_symlink())
        return sorted(path.relative_to(self.path).as_posix() for path in files)

    def named(self, reference: dict[str, Any]) -> "Place":
        """Where a teacher or member is: at its path, or beside this folder, or on the Hub."""
        if "path" in reference:
            return LocalFolder(_absolute(self.path / reference["path"]))
        beside = _absolute(self.path).parent / f"generation-{reference['generation']}"
        record = beside / RECORD
        if record.is_file() and sha256_of_file(record) == reference["lineage_sha256"]:
            return LocalFolder(beside)  # pulled together with this one
        return HubCommit(reference["repo_id"], reference["revision"])


@dataclass(frozen=True)
class HubCommit:
    """A commit of a model repository on the Hub."""

    repo_id: str
    revision: str
    token: str | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not COMMIT.fullmatch(self.revision):
            raise UnpinnedTeacherError(
                f"{self.repo_id} is named by revision {self.revision!r}, which can move: only a "
                "full commit of 40 hex digits says what it was."
            )

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}"

    def fetch(self, name: str) -> Path:
        """The path of a file, downloaded unless it is in the cache.

        Raises:
            UnverifiableError: if it cannot be had.
        """
        api = HfApi(token=self.token)

        def download() -> str:
            return api.hf_hub_download(self.repo_id, name, revision=self.revision)

        try:
            return Path(persistently(f"{name} of {self}", download))
        except HubError as error:
            raise UnverifiableError(str(error)) from error

    def names(self) -> list[str]:
        """All files, those in folders with their path."""
        info = look(self.repo_id, self.revision, self.token)
        if info.sha != self.revision:
            raise UnpinnedTeacherError(f"{self} is the name of a branch or tag, not a commit.")
        return sorted(sibling.rfilename for sibling in info.siblings or [])

    def named(self, reference: dict[str, Any]) -> "HubCommit":
        """Where a teacher or member is.

        Raises:
            RecordError: if it is in a folder: what is published must not name anybody's machine.
        """
        if "path" in reference or "repo_id" not in reference:
            raise RecordError(f"{self} names a folder for a teacher or member, not a repository.")
        return HubCommit(reference["repo_id"], reference["revision"], self.token)


Place = LocalFolder | HubCommit


def _absolute(path: Path) -> Path:
    """By its name alone: a generation may be a link to another disk."""
    return Path(os.path.abspath(path))


def look(repo_id: str, revision: str | None = None, token: str | None = None) -> ModelInfo:
    """What the Hub says of a repository at a revision (by default `main`), with all its files.

    Raises:
        UnverifiableError: if it cannot be had.
    """
    api, what = HfApi(token=token), f"{repo_id}@{revision}" if revision else repo_id
    try:
        return persistently(
            what, lambda: api.model_info(repo_id, revision=revision, files_metadata=True)
        )
    except HubError as error:
        raise UnverifiableError(str(error)) from error


def locate(where: str | Path, revision: str | None = None, token: str | None = None) -> Place:
    """The place of a folder, or of `"ns/name"` or `"ns/name@revision"`, at the commit it is now.

    Raises:
        ValueError: if two revisions are given.
        UnverifiableError: if there is neither such a folder nor such a repository.
    """
    if Path(where).is_dir():
        if revision is not None:
            raise BANError(f"revision={revision!r}: {where} is a local folder, which has none.")
        return LocalFolder(Path(where))
    repo_id, _, named = str(where).partition("@")
    if not REPOSITORY.fullmatch(repo_id):
        raise UnverifiableError(
            f"{str(where)!r} is neither a folder that is there nor a repository, 'ns/name' or "
            "'ns/name@revision'."
        )
    if named and revision not in (None, named):
        raise BANError(f"revision={revision!r} and {where!r} name two revisions: give one.")
    revision = revision or named or "main"
    if not COMMIT.fullmatch(revision):
        revision = str(look(repo_id, revision, token).sha)
    return HubCommit(repo_id, revision, token)
