"""One repository of the Hub: look at it, write it in one commit, read it back, tag it.

A published repository is never replaced by something else, and no file of others is overwritten.
Publishing the same again does nothing, so an interrupted publication is completed by repeating it.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils.sha import git_hash

from ban_hf.errors import PublishError
from ban_hf.hub.client import NotYetVisibleError, with_retries
from ban_hf.lineage.files import is_shown, sha256_of_file
from ban_hf.lineage.record import RECORD, Record

OURS = "ban_hf: "  # how the titles of our commits begin
BY_THE_HUB = {".gitattributes"}  # what a new repository holds
VERSION = re.compile(r"v([1-9]\d*)")

Contents = Mapping[str, Path | bytes]  # of files by their names: a path here, or bytes
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """A commit of a repository, and its files."""

    commit: str
    files: dict[str, RepoSibling]

    def has(self, name: str, content: Path | bytes) -> bool:
        """Whether a file is there with this content, by the hashes that the Hub keeps."""
        stored = self.files.get(name)
        if stored is None:
            return False
        if stored.lfs is None:
            data = content if isinstance(content, bytes) else content.read_bytes()
            return bool(stored.blob_id == git_hash(data))
        if isinstance(content, bytes):
            return bool(stored.lfs.sha256 == hashlib.sha256(content).hexdigest())
        return bool(stored.lfs.sha256 == sha256_of_file(content))


class Repository:
    """A repository, looked at and written with a token.

    `private` is True to check that only you can read it, before anything is sent; False that all
    can; None for a new one to be as your account's are by default.
    """

    def __init__(self, repo_id: str, token: str | None = None, private: bool | None = None) -> None:
        self.repo_id, self.private, self.api = repo_id, private, HfApi(token=token)

    def publish(self, contents: Contents, title: str, replaces: Callable[[Path], bool]) -> str:
        """Write files, a record among them, in one commit; the repository is created if need be.

        The commit is read back: who can read it, its parent, and the hash of every file; then it is
        tagged, the first `v1`. If it holds something else, nothing of it is changed.

        Args:
            contents: all its files.
            title: of the commit.
            replaces: whether the published record, given by its path, is an earlier state of this.

        Returns:
            The commit in which these contents are published.
        """

        def attempt() -> str:
            state = self._create_or_get()
            if state.has(RECORD, contents[RECORD]):
                _check_complete(self.repo_id, state, contents)
            else:
                edited, former = self._check_no_conflict(state, replaces)
                ours = {name: content for name, content in contents.items() if name not in edited}
                gone = (former - contents.keys()) & state.files.keys()
                state = self._commit(ours, gone, title, state.commit)
            return self._tag(state.commit, contents)

        return self._retry(attempt)

    def create_or_get(self) -> None:
        """Create it unless it exists, and check who can read it."""
        self._retry(self._create_or_get)

    def published_commit(self) -> str:
        """The commit in which it was last published, that of its last tag."""
        tags = with_retries(self.repo_id, self._versions)
        if not tags:
            raise PublishError(f"{self.repo_id} is not published: it has no tag v1.")
        return tags[max(tags)]

    def held(self) -> set[str]:
        """Its files, but for those of every new repository; none if it does not exist."""

        def names() -> set[str]:
            exists = self.api.repo_exists(self.repo_id)
            return set(self.api.list_repo_files(self.repo_id)) if exists else set()

        return with_retries(self.repo_id, names) - BY_THE_HUB

    def is_private(self) -> bool:
        """Whether it exists and is private."""

        def private() -> bool:
            exists = self.api.repo_exists(self.repo_id)
            return exists and bool(self.api.model_info(self.repo_id).private)

        return with_retries(self.repo_id, private)

    def _retry(self, attempt: Callable[[], T]) -> T:
        """Repeat an attempt, in which what was made a moment ago may not be found yet."""

        def repeatable() -> T:
            try:
                return attempt()
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if error.response.status_code != 404:  # 401: it may exist, and not be ours
                    raise
                raise NotYetVisibleError("the Hub does not show yet what was just made.") from error

        return with_retries(self.repo_id, repeatable)

    def _create_or_get(self) -> State:
        self.api.create_repo(self.repo_id, private=self.private, exist_ok=True)
        return self._read()

    def _read(self, revision: str | None = None) -> State:
        """Its state; refused if others can read what should be private, or the reverse."""
        info = self.api.model_info(self.repo_id, revision=revision, files_metadata=True)
        if self.private is False and info.private:
            raise PublishError(
                f"{self.repo_id} should be public, but is private: make it public in its settings."
            )
        if self.private and not info.private:
            raise PublishError(
                f"{self.repo_id} should be private, but the Hub says that it is public. (Weights "
                "are sent after this check only.) Make it private in its settings, delete it, or "
                "give another name."
            )
        return State(str(info.sha), {s.rfilename: s for s in info.siblings or []})

    def _versions(self) -> dict[int, str]:
        """Number and commit of the tags v1, v2 and so on."""
        tags = self.api.list_repo_refs(self.repo_id).tags
        found = ((VERSION.fullmatch(tag.name), tag.target_commit) for tag in tags)
        return {int(match[1]): commit for match, commit in found if match}

    def _check_no_conflict(
        self, state: State, replaces: Callable[[Path], bool]
    ) -> tuple[set[str], set[str]]:
        """Check that it holds nothing that would be lost.

        Of an earlier state of ours: the cards and pictures that were edited since, which stay, and
        the files that the model had then.
        """
        others = state.files.keys() - BY_THE_HUB
        if not others:
            return set(), set()
        if RECORD not in others:
            raise PublishError(
                f"{self.repo_id} holds {', '.join(sorted(others))}, which is none of ours. Nothing "
                "was changed: give another name, or delete it."
            )
        record = Path(self.api.hf_hub_download(self.repo_id, RECORD, revision=state.commit))
        if not replaces(record):
            raise PublishError(
                f"{self.repo_id} holds another training than this one, or one whose teacher was "
                "published elsewhere. Nothing was changed: give another name, or delete it (its "
                "students then lose their teacher)."
            )
        tags = self._versions()
        before = self._read(tags[max(tags)]) if tags else state
        blobs = [{n: f.blob_id for n, f in each.files.items()} for each in (before, state)]
        edited = {name for name, _ in blobs[0].items() ^ blobs[1].items()}
        if theirs := sorted(name for name in edited if not is_shown(name)):
            raise PublishError(
                f"{self.repo_id} was changed since it was published: {', '.join(theirs)}. Nothing "
                "was changed by this: revert that commit, or give another name."
            )
        return edited, {file.path for file in Record.read(record.parent).files}

    def _commit(self, contents: Contents, gone: set[str], title: str, parent: str) -> State:
        """Write all files in one commit on top of `parent`, delete some, and read it back."""
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in contents.items()
            ),
            *map(CommitOperationDelete, sorted(gone)),
        ]
        commit = self.api.create_commit(
            self.repo_id, operations, commit_message=OURS + title, parent_commit=parent
        ).oid
        state = self._read(commit)
        log = self.api.list_repo_commits(self.repo_id, revision=commit)
        history = [entry.commit_id for entry in log]
        if history[0] == commit and history[1:2] != [parent]:
            raise PublishError(
                f"{self.repo_id} took our commit {commit[:7]} on top of {history[1:2]}, though it "
                f"was made for {parent[:7]}: another commit came in between, and the server "
                "ignored that. Look at both commits; both are there."
            )
        written = all(state.has(name, content) for name, content in contents.items())
        if state.commit != commit or history[0] != commit or not written:
            raise NotYetVisibleError(f"commit {commit[:7]} does not read back as it was written.")
        return state

    def _tag(self, head: str, contents: Contents) -> str:
        """The commit in which this was published: that of the last tag, or the head, tagged."""
        tags = self._versions()
        last = max(tags, default=0)
        if tags:
            state = self._read(tags[last])
            if state.has(RECORD, contents[RECORD]):
                _check_complete(f"{self.repo_id}@v{last}", state, contents)
                return state.commit
        tag = f"v{last + 1}"
        self.api.create_tag(self.repo_id, tag=tag, revision=head, exist_ok=True)
        if self._versions().get(last + 1) != head:  # an old tag stays where it was, silently
            raise NotYetVisibleError(f"tag {tag} does not read back as it was set.")
        return head


def _check_complete(where: str, state: State, contents: Contents) -> None:
    """Check that what is published has its files and no others; cards may be new."""
    wrong = [n for n, content in contents.items() if not (is_shown(n) or state.has(n, content))]
    wrong += [name for name in state.files.keys() - contents.keys() if not is_shown(name)]
    if wrong:
        raise PublishError(
            f"{where} is published, but others have changed, added or removed {', '.join(wrong)} "
            "since. Nothing was changed: revert that commit, or give another name."
        )


def full_name(repo_id: str, token: str | None = None) -> str:
    """`"ns/name"`; a bare name is the user's."""
    if "/" in repo_id:
        return repo_id
    user = with_retries("your name", lambda: HfApi(token=token).whoami()["name"])
    return f"{user}/{repo_id}"


def generation_repository(repo_id: str, generation: int | None) -> str:
    """The repository of a generation of a family."""
    return f"{repo_id}-gen{generation}"
