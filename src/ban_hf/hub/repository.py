"""One repository of the Hub: looked at, written in one commit, read back, tagged.

A repository that was published is never replaced by something else, and nothing that somebody else
put there is overwritten. Publishing again what is there does nothing, so that a publication which
broke off at any point is completed by being made again.
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
from ban_hf.hub.client import UnsettledError, persistently
from ban_hf.lineage.record import RECORD, Record, is_shown, sha256_of_file

OURS = "ban_hf: "  # how the titles of our commits begin
BY_THE_HUB = {".gitattributes"}  # what a new repository holds
VERSION = re.compile(r"v([1-9]\d*)")

Content = Path | bytes
T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """What stands in a repository."""

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
    """Bring files, a record among them, into a repository of their own, in one commit.

    The repository is made if it is not there. The commit is read back: who can read it, what it
    stands on, and the hash of every file; then it is tagged, the first `v1`.

    Args:
        repo_id: `"ns/name"`.
        contents: each file's name there, and its path here or its bytes.
        title: of the commit.
        private: True to hold that only you can read it, before anything is sent; None for a new
            repository to be as your account's are by default.
        token: by default the one that `hf auth login` or HF_TOKEN gave.
        replaces: whether the record that stands there is an earlier state of this one.

    Returns:
        The commit in which these contents are published.

    Raises:
        PublishError: if it should be private and is not, or holds something else: nothing of it is
            changed.
        HubError: if the Hub cannot be reached, or refuses.
    """
    api = HfApi(token=token)

    def attempt() -> str:
        remote = _made(api, repo_id, private)
        record = remote.files.get(RECORD)
        if record is not None and is_same(record, contents[RECORD]):
            _hold_whole(repo_id, remote, contents)
        else:
            edited, standing = _hold_free(api, repo_id, remote, replaces)
            ours = {name: content for name, content in contents.items() if name not in edited}
            gone = (standing - contents.keys()) & remote.files.keys()
            remote = _commit(api, repo_id, ours, gone, title, remote.head, private)
        return _tagged(api, repo_id, remote.head, contents)

    return persistently(repo_id, _settled(attempt))


def publication(repo_id: str, token: str | None = None) -> str:
    """The commit in which a repository was last published, that of its last tag.

    Raises:
        PublishError: if it has none.
        HubError: if it is not there, or the Hub cannot be reached.
    """
    tags = persistently(repo_id, lambda: _versions(HfApi(token=token), repo_id))
    if not tags:
        raise PublishError(f"{repo_id} is not published: it has no tag v1.")
    return tags[max(tags)]


def contents_of(repo_id: str, token: str | None = None) -> set[str]:
    """The files that a repository holds, but for those of every new one; none if it is not there.

    Raises:
        HubError: see `publish`.
    """
    api = HfApi(token=token)

    def names() -> set[str]:
        return set(api.list_repo_files(repo_id)) if api.repo_exists(repo_id) else set()

    return persistently(repo_id, names) - BY_THE_HUB


def is_private(repo_id: str, token: str | None = None) -> bool:
    """Whether a repository is there, and is private.

    Raises:
        HubError: see `publish`.
    """
    api = HfApi(token=token)
    return persistently(
        repo_id, lambda: api.repo_exists(repo_id) and bool(api.model_info(repo_id).private)
    )


def prepare(repo_id: str, private: bool | None = None, token: str | None = None) -> None:
    """Make a repository unless it is there, and look who can read it.

    Raises:
        PublishError: if it should be private and everybody can read it.
        HubError: see `publish`.
    """
    api = HfApi(token=token)
    persistently(repo_id, _settled(lambda: _made(api, repo_id, private)))


def _settled(attempt: Callable[[], T]) -> Callable[[], T]:
    """An attempt in which what was made a moment ago may not be found yet."""

    def settled() -> T:
        try:
            return attempt()
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            if error.response.status_code != 404:  # nobody may know whether it is there
                raise
            raise UnsettledError("the Hub does not show yet what was just made.") from error

    return settled


def _made(api: HfApi, repo_id: str, private: bool | None) -> Remote:
    api.create_repo(repo_id, private=private, exist_ok=True)
    return _look(api, repo_id, private)


def _look(api: HfApi, repo_id: str, private: bool | None, revision: str | None = None) -> Remote:
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


def _hold_whole(repo_id: str, remote: Remote, contents: Mapping[str, Content]) -> None:
    """Hold that the files of a published record are there, and no others; its card may be new."""
    changed = _not_as(contents, remote)
    if changed:
        raise PublishError(
            f"{repo_id} is published, but somebody has changed, added or removed "
            f"{', '.join(changed)} since. Nothing was changed: revert that commit, or give another "
            "name."
        )


def _not_as(contents: Mapping[str, Content], remote: Remote) -> list[str]:
    """What is not there as it should be, or is there and should not; cards and pictures apart."""
    wrong = [
        name
        for name, content in contents.items()
        if not is_shown(name)
        and not (name in remote.files and is_same(remote.files[name], content))
    ]
    return wrong + [name for name in remote.files.keys() - contents if not is_shown(name)]


def _hold_free(
    api: HfApi, repo_id: str, remote: Remote, replaces: Callable[[Path], bool]
) -> tuple[set[str], set[str]]:
    """Hold that a repository holds nothing that would be lost.

    Returns:
        Of an earlier state of ours: the cards and pictures that somebody has edited since, which
        stay; and the files that the model had then.
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
            f"{repo_id} holds another training than this one, or one whose teacher stood "
            "elsewhere. Nothing was changed: give another name, or delete it (whoever was taught "
            "by it then has a teacher that is gone)."
        )
    edited = _edited(api, repo_id, remote)
    if theirs := sorted(name for name in edited if not is_shown(name)):
        raise PublishError(
            f"{repo_id} was changed since it was published: {', '.join(theirs)}. Nothing was "
            "changed by this: revert that commit, or give another name."
        )
    return edited, {file["path"] for file in Record.read(record.parent).files}


def _edited(api: HfApi, repo_id: str, remote: Remote) -> set[str]:
    """The files that are not as they were when last published."""
    tags = _versions(api, repo_id)
    before = _look(api, repo_id, None, revision=tags[max(tags)]) if tags else remote
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
    remote = _look(api, repo_id, private, revision=commit.oid)
    history = [entry.commit_id for entry in api.list_repo_commits(repo_id, revision=commit.oid)]
    if history[0] == commit.oid and history[1:2] != [parent]:
        raise PublishError(
            f"{repo_id} took our commit {commit.oid[:7]} on top of {history[1:2]}, though it was "
            f"made for {parent[:7]}: somebody else wrote in between, and the server did not heed "
            "it. Look at both commits; both are there."
        )
    stands = all(n in remote.files and is_same(remote.files[n], c) for n, c in contents.items())
    if remote.head != commit.oid or history[0] != commit.oid or not stands:
        raise UnsettledError(f"commit {commit.oid[:7]} does not read back as it was written.")
    return remote


def _tagged(api: HfApi, repo_id: str, head: str, contents: Mapping[str, Content]) -> str:
    """The commit in which this was published: that of the last tag, or the head, tagged."""
    tags = _versions(api, repo_id)
    if tags:
        last = _look(api, repo_id, None, revision=tags[max(tags)])
        if RECORD in last.files and is_same(last.files[RECORD], contents[RECORD]):
            _hold_whole(f"{repo_id}@v{max(tags)}", last, contents)
            return last.head
    number = max(tags, default=0) + 1
    api.create_tag(repo_id, tag=f"v{number}", revision=head, exist_ok=True)
    if _versions(api, repo_id).get(number) != head:  # an old tag stays where it was, silently
        raise UnsettledError(f"tag v{number} does not read back as it was set.")
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
