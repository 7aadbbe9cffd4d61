"""Repositories: commits of files, whose blobs have git's own ids."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from functools import cached_property

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.png")
GITATTRIBUTES = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS).encode()
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)  # a clock of our own: the same story has the same ids


class Refusal(Exception):
    """A request that is not granted, with the status and the error code of the Hub."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


def git_id(kind: str, body: bytes) -> str:
    """The id that git gives to an object."""
    return hashlib.sha1(f"{kind} {len(body)}\0".encode() + body).hexdigest()


def goes_to_lfs(path: str) -> bool:
    """Whether git holds a mere pointer to this file."""
    return any(fnmatch(path, pattern) for pattern in LFS_PATTERNS)


@dataclass(frozen=True)
class File:
    """A file of a tree: what git holds of it and, behind an LFS pointer, its sha256 and size."""

    blob: bytes
    size: int
    sha256: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "File":
        return cls(content, len(content))

    @classmethod
    def lfs(cls, sha256: str, size: int) -> "File":
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(pointer.encode(), size, sha256)

    @cached_property
    def oid(self) -> str:
        return git_id("blob", self.blob)

    @property
    def etag(self) -> str:
        """What the Hub calls the content by: the sha256 behind a pointer, else the blob's id."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """A commit with its whole tree."""

    files: Mapping[str, File]
    title: str
    date: datetime
    parent: str | None

    @cached_property
    def id(self) -> str:
        files = {path: file.oid for path, file in sorted(self.files.items())}
        story = [files, self.title, self.date.isoformat(), self.parent]
        return git_id("commit", repr(story).encode())


@dataclass
class Repository:
    """A repository: its commits, what names them, and the objects behind LFS pointers."""

    id: str
    private: bool
    head: str = ""  # of its branch, main
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # by sha256
    tampered: dict[str, bytes] = field(default_factory=dict)  # by etag: what is served instead

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def find(self, revision: str = "main") -> Commit:
        """The commit that `main`, a tag or a full id names."""
        commit = ({"main": self.head} | self.tags).get(revision, revision)
        if commit not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[commit]

    def commits_of(self, revision: str = "main") -> list[Commit]:
        """The history of a revision, newest first."""
        history = [self.find(revision)]
        while history[-1].parent:
            history.append(self.commits[history[-1].parent])
        return history

    def content(self, file: File) -> bytes:
        return file.blob if file.sha256 is None else self.objects[file.sha256]

    def served(self, file: File) -> bytes:
        """What a download gets: the content, unless it has been tampered with."""
        return self.tampered.get(file.etag, self.content(file))

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: self.content(file) for path, file in self.find(revision).files.items()}

    def store(self, path: str, content: bytes) -> File:
        """A file ready to be committed, its content uploaded where that goes to LFS."""
        if not goes_to_lfs(path):
            return File.regular(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return File.lfs(sha256, len(content))

    def commit(self, files: Mapping[str, File], title: str, date: datetime) -> Commit:
        """Commit a whole tree on top of the head."""
        commit = Commit(dict(files), title, date, self.head or None)
        self.commits[commit.id] = commit
        self.head = commit.id
        return commit

    def copy(self) -> "Repository":
        """A copy that changes on its own; commits and contents never change, and are shared."""
        parts = ("tags", "commits", "objects", "tampered")
        return replace(self, **{part: copy.copy(getattr(self, part)) for part in parts})


@dataclass
class Store:
    """All repositories, as they are and as they were before the last write."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    before: dict[str, Repository] = field(default_factory=dict)
    writes: int = 0

    @property
    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.writes)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Every write goes through here, so that what was before it can be served as stale."""
        before = self._copies()
        self.writes += 1
        yield
        self.before = before

    def create(self, repo_id: str, private: bool) -> Repository:
        """A repository with the commit that the Hub makes in every new one."""
        repository = Repository(repo_id, private)
        attributes = {".gitattributes": File.regular(GITATTRIBUTES)}
        repository.commit(attributes, "initial commit", self.now)
        self.repositories[repo_id] = repository
        return repository

    def copy(self) -> "Store":
        return Store(self._copies(), self.before, self.writes)

    def _copies(self) -> dict[str, Repository]:
        return {repo_id: repo.copy() for repo_id, repo in self.repositories.items()}
