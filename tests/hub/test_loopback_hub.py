"""The Hub that other tests publish to: what the real client relies on, and what can go wrong."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.sha import git_hash

from ban_hf.hub.client import HTTPError

WEIGHTS = bytes(range(256)) * 400
FILES = {
    "README.md": b"---\nlicense: mit\ntags: [born-again]\n---\n# A model\n",
    "model.safetensors": WEIGHTS,
    "a/b.txt": b"",
    "a/deep/er.bin": b"\0\1",
    "a0": "nach a/, größer".encode(),
}


@pytest.fixture
def api(hub) -> HfApi:
    """Ours, with a repository of our own."""
    api = HfApi(endpoint=hub.endpoint, token="hf_ours")
    api.create_repo("ns/x")
    return api


def write(api: HfApi, files: dict[str, bytes], **options) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit("ns/x", operations, commit_message="Add files", **options).oid


def status_of(call, *args, **kwargs) -> int:
    with pytest.raises(HfHubHTTPError) as error:
        call(*args, **kwargs)
    return error.value.response.status_code


def test_what_is_committed_is_read_back_unless_it_was_tampered_with(hub, api):
    oid = write(api, FILES)
    repo = hub.repositories["ns/x"]
    assert repo.head == oid == api.repo_info("ns/x").sha
    expected = FILES | {".gitattributes": repo.files()[".gitattributes"]}
    assert sorted(api.list_repo_files("ns/x")) == sorted(expected)
    folder = snapshot_download("ns/x")
    assert {path: Path(folder, path).read_bytes() for path in expected} == expected
    siblings = api.model_info("ns/x", files_metadata=True).siblings
    for sibling in siblings:
        content = expected[sibling.rfilename]
        assert sibling.size == len(content)
        if sibling.rfilename.endswith((".bin", ".safetensors")):
            assert sibling.lfs.sha256 == hashlib.sha256(content).hexdigest()
        else:
            assert (sibling.lfs, sibling.blob_id) == (None, git_hash(content))
    assert [c.title for c in api.list_repo_commits("ns/x")] == ["Add files", "initial commit"]
    # Tokens do not leave the Hub.
    assert not [r for r in hub.requests if r.path.startswith(("/cdn/", "/lfs/")) and r.token]
    hub.tamper("ns/x", "model.safetensors", WEIGHTS[::-1])
    assert api.model_info("ns/x", files_metadata=True).siblings == siblings
    again = hf_hub_download("ns/x", "model.safetensors", force_download=True)
    assert Path(again).read_bytes() == WEIGHTS[::-1]


def test_a_commit_on_a_stale_parent_is_refused_unless_the_parent_is_ignored(hub, api):
    parent = hub.repositories["ns/x"].head
    theirs = hub.commit("ns/x", {"theirs": b"1"}, "meanwhile")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        write(api, FILES, parent_commit=parent)
    assert hub.repositories["ns/x"].head == theirs.id
    hub.ignores_parent = True
    write(api, FILES, parent_commit=parent)
    assert {"theirs", *FILES} <= set(hub.repositories["ns/x"].files())


def test_tags_name_commits(hub, api):
    first, second = write(api, {"a": b"1"}), write(api, {"a": b"2"})
    api.create_tag("ns/x", tag="v1", revision=first)
    assert status_of(api.create_tag, "ns/x", tag="v1") == 409
    (tag,) = api.list_repo_refs("ns/x").tags
    assert (tag.name, tag.target_commit) == ("v1", first)
    for revision, content in {"v1": b"1", "main": b"2", first: b"1", second: b"2"}.items():
        assert Path(hf_hub_download("ns/x", "a", revision=revision)).read_bytes() == content
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("ns/x", revision=first[:8])  # an id is given in full


def test_what_is_private_is_for_the_owner_and_only_the_owner_writes(hub, api):
    api.create_repo("ns/secret", private=True)
    hub.commit("ns/secret", {"b.bin": b"2"}, "private")
    assert hf_hub_download("ns/secret", "b.bin")
    for token, writing, reading in ((None, 401, 401), ("hf_theirs", 403, 404)):
        other = HfApi(endpoint=hub.endpoint, token=token or False)
        assert status_of(other.create_repo, "ns/y") == writing
        assert status_of(other.create_tag, "ns/x", tag="v1") == writing
        assert status_of(write, other, {"a": b"1"}) == writing
        assert status_of(other.repo_info, "ns/secret") == reading
        with pytest.raises(RepositoryNotFoundError):
            other.snapshot_download("ns/secret", cache_dir="unused")
    assert set(hub.repositories["ns/x"].files()) == {".gitattributes"}
    hub.ignores_private = True
    api.create_repo("ns/leaked", private=True)
    assert HfApi(endpoint=hub.endpoint, token=False).repo_exists("ns/leaked")


@pytest.mark.parametrize(
    ("kind", "error", "done"),
    [
        ("error", HfHubHTTPError, False),
        ("error_after", HfHubHTTPError, True),
        ("drop", HTTPError, False),
        ("drop_after", HTTPError, True),
    ],
)
def test_a_write_fails_before_or_after_it_is_done(hub, api, kind, error, done):
    state, head = hub.snapshot(), hub.repositories["ns/x"].head
    hub.fail(2, kind)
    api.create_tag("ns/x", tag="first")
    with pytest.raises(error):
        api.create_tag("ns/x", tag="v1")
    assert ("v1" in hub.repositories["ns/x"].tags) == done
    assert hub.requests[-1].status == (503 if "error" in kind else None)
    hub.fail(1, "error", times=10)
    hub.heal()
    hub.restore(state)
    assert hub.repositories["ns/x"].tags == {}
    api.create_tag("ns/x", tag="v1")
    assert hub.repositories["ns/x"].tags == {"v1": head}


def test_answers_can_be_slow_stale_or_cut(hub, api):
    hub.fail(1, "slow", seconds=60)
    with pytest.raises(HTTPError, match="timed out"):
        api.model_info("ns/x", timeout=0.05)
    first, second = (write(api, {"model.safetensors": WEIGHTS[i:]}) for i in (0, 1))
    hub.fail(1, "stale", times=2)
    assert [api.repo_info("ns/x").sha for _ in range(3)] == [first, first, second]
    hub.fail(2, "cut")
    assert Path(hf_hub_download("ns/x", "model.safetensors")).read_bytes() == WEIGHTS[1:]
    assert [r.method for r in hub.requests[-3:]] == ["HEAD", "GET", "GET"]
