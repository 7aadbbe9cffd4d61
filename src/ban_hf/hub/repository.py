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

Content = Path | bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A repository's commit and its files."""

    head: str
    files: dict[str, RepoSibling]


def publish(
    repo_id: str,
    contents: Mapping[str, Content],
    *,
    title: str,
    private: bool | None = None,
    token: str | None = None,
    replaces: Callable[[Path], bool],
) -> str:
    """Write files, a record among them, into a repository of their own, in one commit.

    The repository is created if it does not exist. The commit is read back: who can read it, its
    parent, and the hash of every file; then it is tagged, the first `v1`.

    Args:
        repo_id: `"ns/name"`.
        contents: each file's name there, and its path here or its bytes.
        title: of the commit.
        private: True to check that only you can read it, before anything is sent; None for a new
            repository to be as your account's are by default.
        token: by default the one of `hf auth login` or HF_TOKEN.
        replaces: whether the published record, given by its path, is an earlier state of this one.

    Returns:
        The commit in which these contents are published.

    Raises:
        PublishError: if it should be private and is not, or holds something else: nothing of it is
            changed.
        HubError: if the Hub cannot be reached, or refuses.
    """
    api = HfApi(token=token)

    def attempt() -> str:
        remote = _create_or_get(api, repo_id, private)
        record = remote.files.get(RECORD)
        if record is not None and is_same(record, contents[RECORD]):
            _check_complete(repo_id, remote, contents)
        else:
            edited, former = _check_no_conflict(api, repo_id, remote, replaces)
            ours = {name: content for name, content in contents.items() if name not in edited}
            gone = (former - contents.keys()) & remote.files.keys()
            remote = _commit(api, repo_id, ours, gone, title, remote.head, private)
        return _tag(api, repo_id, remote.head, contents)

    return with_retries(repo_id, _retry_until_visible(attempt))


def published_commit(repo_id: str, token: str | None = None) -> str:
    """The commit in which a repository was last published, that of its last tag.

    Raises:
        PublishError: if it has none.
        HubError: if it does not exist, or the Hub cannot be reached.
    """
    tags = with_retries(repo_id, lambda: _versions(HfApi(token=token), repo_id))
    if not tags:
        raise PublishError(f"{repo_id} is not published: it has no tag v1.")
    return tags[max(tags)]


def contents_of(repo_id: str, token: str | None = None) -> set[str]:
    """The files of a repository, but for those of every new one; none if it does not exist.

    Raises:
        HubError: see `publish`.
    """
    api = HfApi(token=token)

    def names() -> set[str]:
        return set(api.list_repo_files(repo_id)) if api.repo_exists(repo_id) else set()

    return with_retries(repo_id, names) - BY_THE_HUB


def is_private(repo_id: str, token: str | None = None) -> bool:
    """Whether a repository exists and is private.

    Raises:
        HubError: see `publish`.
    """
    api = HfApi(token=token)
    return with_retries(
        repo_id, lambda: api.repo_exists(repo_id) and bool(api.model_info(repo_id).private)
    )


def create_or_get(repo_id: str, private: bool | None = None, token: str | None = None) -> None:
    """Create a repository unless it exists, and check who can read it.

    Raises:
        PublishError: if it should be private and everybody can read it.
        HubError: see `publish`.
    """
    api = HfApi(token=token)
    with_retries(repo_id, _retry_until_visible(lambda: _create_or_get(api, repo_id, private)))


def _retry_until_visible(attempt: Callable[[], T]) -> Callable[[], T]:
    """An attempt in which what was made a moment ago may not be found yet."""

    def repeatable() -> T:
        try:
            return attempt()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if error.response.status_code != 404:  # 401: it may exist, and not be ours
                raise
            raise NotYetVisibleError("the Hub does not show yet what was just made.") from error

    return repeatable


def _create_or_get(api: HfApi, repo_id: str, private: bool | None) -> Remote:
    api.create_repo(repo_id, private=private, exist_ok=True)
    return _read(api, repo_id, private)


def _read(api: HfApi, repo_id: str, private: bool | None, revision: str | None = None) -> Remote:
    """A repository's state; refused if others can read what should be private, or the reverse."""
    info = api.model_info(repo_id, revision=revision, files_metadata=True)
    if private is False and info.private:
        raise PublishError(
            f"{repo_id} should be public, but is private: make it public in its settings."
        )
    if private and not info.private:
        raise PublishError(
            f"{repo_id} should be private, but the Hub says that it is public. (Weights are sent "
            "after this check only.) Make it private in its settings, delete it, or give another "
            "name."
        )
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    return Remote(str(info.sha), files)


def _check_complete(repo_id: str, remote: Remote, contents: Mapping[str, Content]) -> None:
    """Check that a published repository has its files and no others; cards may be new."""
    wrong = [
        name
        for name, content in contents.items()
        if not is_shown(name)
        and not (name in remote.files and is_same(remote.files[name], content))
    ]
    wrong += [name for name in remote.files.keys() - contents if not is_shown(name)]
    if wrong:
        raise PublishError(
            f"{repo_id} is published, but others have changed, added or removed "
            f"{', '.join(wrong)} since. Nothing was changed: revert that commit, or give another "
            "name."
        )


def _check_no_conflict(
    api: HfApi, repo_id: str, remote: Remote, replaces: Callable[[Path], bool]
) -> tuple[set[str], set[str]]:
    """Check that a repository holds nothing that would be lost.

    Returns:
        Of an earlier state of ours: the cards and pictures that were edited since, which stay; and
        the files that the model had then.
    """
    others = remote.files.keys() - BY_THE_HUB
    if not others:
        return set(), set()
    if RECORD not in others:
        raise PublishError(
            f"{repo_id} holds {', '.join(sorted(others))}, which is none of ours. Nothing was "
            "changed: give another name, or delete it."
        )
    record = Path(api.hf_hub_download(repo_id, RECORD, revision=remote.head))
    if not replaces(record):
        raise PublishError(
            f"{repo_id} holds another training than this one, or one whose teacher was published "
            "elsewhere. Nothing was changed: give another name, or delete it (its students then "
            "lose their teacher)."
        )
    edited = _edited(api, repo_id, remote)
    if theirs := sorted(name for name in edited if not is_shown(name)):
        raise PublishError(
            f"{repo_id} was changed since it was published: {', '.join(theirs)}. Nothing was "
            "changed by this: revert that commit, or give another name."
        )
    return edited, {file.path for file in Record.read(record.parent).files}


def _edited(api: HfApi, repo_id: str, remote: Remote) -> set[str]:
    """The files that are not as they were when last published."""
    tags = _versions(api, repo_id)
    before = _read(api, repo_id, None, revision=tags[max(tags)]) if tags else remote
    blobs = [{n: f.blob_id for n, f in state.files.items()} for state in (before, remote)]
    return {name for name, _ in blobs[0].items() ^ blobs[1].items()}


def _commit(
    api: HfApi,
    repo_id: str,
    contents: Mapping[str, Content],
    gone: set[str],
    title: str,
    parent: str,
    private: bool | None,
) -> Remote:
    """Write all files in one commit on top of `parent`, delete some, and read it back."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in contents.items()
        ),
        *map(CommitOperationDelete, sorted(gone)),
    ]
    commit = api.create_commit(
        repo_id, operations, commit_message=OURS + title, parent_commit=parent
    )
    remote = _read(api, repo_id, private, revision=commit.oid)
    history = [entry.commit_id for entry in api.list_repo_commits(repo_id, revision=commit.oid)]
    if history[0] == commit.oid and history[1:2] != [parent]:
        raise PublishError(
            f"{repo_id} took our commit {commit.oid[:7]} on top of {history[1:2]}, though it was "
            f"made for {parent[:7]}: another commit came in between, and the server ignored that. "
            "Look at both commits; both are there."
        )
    written = all(n in remote.files and is_same(remote.files[n], c) for n, c in contents.items())
    if remote.head != commit.oid or history[0] != commit.oid or not written:
        raise NotYetVisibleError(f"commit {commit.oid[:7]} does not read back as it was written.")
    return remote


def _tag(api: HfApi, repo_id: str, head: str, contents: Mapping[str, Content]) -> str:
    """The commit in which this was published: that of the last tag, or the head, tagged."""
    tags = _versions(api, repo_id)
    if tags:
        last = _read(api, repo_id, None, revision=tags[max(tags)])
        if RECORD in last.files and is_same(last.files[RECORD], contents[RECORD]):
            _check_complete(f"{repo_id}@v{max(tags)}", last, contents)
            return last.head
    number = max(tags, default=0) + 1
    api.create_tag(repo_id, tag=f"v{number}", revision=head, exist_ok=True)
    if _versions(api, repo_id).get(number) != head:  # an old tag stays where it was, silently
        raise NotYetVisibleError(f"tag v{number} does not read back as it was set.")
    return head


def _versions(api: HfApi, repo_id: str) -> dict[int, str]:
    """Number and commit of the tags v1, v2 and so on."""
    tags = api.list_repo_refs(repo_id).tags
    found = ((VERSION.fullmatch(tag.name), tag.target_commit) for tag in tags)
    return {int(match[1]): commit for match, commit in found if match}


def is_same(stored: RepoSibling, content: Content) -> bool:
    """Whether a stored file has these contents, by the hashes that the Hub keeps."""
    if stored.lfs is None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        return bool(stored.blob_id == git_hash(data))
    if isinstance(content, bytes):
        return bool(stored.lfs.sha256 == hashlib.sha256(content).hexdigest())
    return bool(stored.lfs.sha256 == sha256_of_file(content))


def full_name(repo_id: str, token: str | None = None) -> str:
    """`"ns/name"`; a bare name is the user's."""
    if "/" in repo_id:
        return repo_id
    user = with_retries("your name", lambda: HfApi(token=token).whoami()["name"])
    return f"{user}/{repo_id}"


def generation_repository(repo_id: str, generation: int | None) -> str:
    """The repository of a generation of a family."""
    return f"{repo_id}-gen{generation}"
