"""The Hub that other tests publish to: what the real client relies on, and what can go wrong."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash
from loopback_hub.client import environment

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


def test_what_is_committed_is_read_back(hub, api):
    oid = write(api, FILES)
    repo = hub.repositories["ns/x"]
    assert repo.head == oid == api.repo_info("ns/x").sha
    expected = FILES | {".gitattributes": repo.files()[".gitattributes"]}
    assert repo.files() == expected
    assert sorted(api.list_repo_files("ns/x")) == sorted(expected)
    folder = snapshot_download("ns/x")
    for path, content in expected.items():
        assert Path(folder, path).read_bytes() == content
    siblings = {s.rfilename: s for s in api.model_info("ns/x", files_metadata=True).siblings}
    for path, content in FILES.items():
        lfs = siblings[path].lfs
        assert siblings[path].size == len(content)
        assert (lfs is not None) == path.endswith((".bin", ".safetensors"))
        if lfs:
            assert lfs.sha256 == hashlib.sha256(content).hexdigest()
        else:
            assert siblings[path].blob_id == git_hash(content)


def test_history_is_newest_first_and_files_can_be_deleted(hub, api):
    write(api, FILES)
    delete = [CommitOperationDelete("a0")]
    api.create_commit("ns/x", delete, commit_message="Delete it")
    commits = api.list_repo_commits("ns/x")
    assert [c.title for c in commits] == ["Delete it", "Add files", "initial commit"]
    assert [c.commit_id for c in commits] == [c.id for c in hub.repositories["ns/x"].commits_of()]
    assert "a0" not in hub.repositories["ns/x"].files()


def test_an_upload_must_be_what_it_claims(hub, api):
    oid = hashlib.sha256(b"1234").hexdigest()
    url = hub.endpoint + hub.sign(f"/lfs/ns/x/{oid}/4")
    assert get_session().put(url, content=b"1235").status_code == 400
    assert get_session().put(url + "0", content=b"1234").status_code == 403  # not signed by us
    addition = CommitOperationAdd("model.safetensors", WEIGHTS)
    api.preupload_lfs_files("ns/x", [addition])
    hub.repositories["ns/x"].objects.clear()
    with pytest.raises(BadRequestError, match="does not exist"):
        api.create_commit("ns/x", [addition], commit_message="hollow")


def test_what_is_served_can_be_tampered_with(hub, api):
    write(api, FILES)
    before = api.model_info("ns/x", files_metadata=True).siblings
    hub.tamper("ns/x", "model.safetensors", WEIGHTS[::-1])
    assert api.model_info("ns/x", files_metadata=True).siblings == before
    assert Path(hf_hub_download("ns/x", "model.safetensors")).read_bytes() == WEIGHTS[::-1]


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
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ns/x", "none")


def test_writing_needs_the_token_of_the_namespace(hub, api):
    for token, status in {None: 401, "hf_unknown": 401, "hf_theirs": 403}.items():
        other = HfApi(endpoint=hub.endpoint, token=token or False)
        assert status_of(other.create_repo, "ns/y") == status
        assert status_of(other.create_tag, "ns/x", tag="v1") == status
        assert status_of(write, other, {"a": b"1"}) == status
    assert set(hub.repositories["ns/x"].files()) == {".gitattributes"}


def test_private_is_for_the_owner_alone(hub, api):
    api.create_repo("ns/secret", private=True)
    hub.commit("ns/secret", {"a": b"1", "b.bin": b"2"}, "private")
    assert api.repo_info("ns/secret").private
    assert hf_hub_download("ns/secret", "b.bin")
    for token, status in {None: 401, "hf_theirs": 404}.items():
        other = HfApi(endpoint=hub.endpoint, token=token or False)
        assert status_of(other.repo_info, "ns/secret") == status
        with pytest.raises(RepositoryNotFoundError):
            other.snapshot_download("ns/secret", cache_dir="unused")
    hub.ignores_private = True
    api.create_repo("ns/leaked", private=True)
    assert HfApi(endpoint=hub.endpoint, token=False).repo_exists("ns/leaked")


def test_tokens_do_not_leave_the_hub(hub, api):
    write(api, FILES)
    snapshot_download("ns/x")
    elsewhere = [r.token for r in hub.requests if r.path.startswith(("/cdn/", "/lfs/"))]
    assert elsewhere == [None] * 4


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
    hub.fail(2, kind)
    api.create_tag("ns/x", tag="first")
    with pytest.raises(error):
        api.create_tag("ns/x", tag="v1")
    assert ("v1" in hub.repositories["ns/x"].tags) == done
    assert hub.requests[-1].status == (503 if "error" in kind else None)
    api.create_tag("ns/x", tag="third")


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


def test_the_store_can_be_set_back_and_faults_forgotten(hub, api):
    write(api, FILES)
    state, before = hub.snapshot(), hub.repositories["ns/x"].files()
    other = write(api, {"model.safetensors": b"other"})
    api.create_tag("ns/x", tag="v1")
    hub.fail(1, "error", times=10)
    hub.heal()
    hub.restore(state)
    assert hub.repositories["ns/x"].files() == before
    assert hub.repositories["ns/x"].tags == {}
    assert write(api, {"model.safetensors": b"other"}) == other  # the clock is set back too
    with pytest.raises(ValueError, match="no such fault"):
        hub.fail(1, "typo")


def test_another_process_is_told_by_its_environment(hub, api, tmp_path):
    code = (
        "from huggingface_hub import HfApi, snapshot_download;"
        "print(HfApi().whoami()['name'], snapshot_download('ns/x'))"
    )
    env = os.environ | environment(hub, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"ns {tmp_path / 'home'}")
