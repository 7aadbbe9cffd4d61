"""The Hub that other tests publish to: what the real client must be able to rely on."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
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
from loopback_hub import LoopbackHub
from loopback_hub.client import connect, environment

from ban_hf.hub.client import HTTPError

WEIGHTS = bytes(range(256)) * 400
FILES = {
    "README.md": b"---\nlicense: mit\ntags: [born-again]\n---\n# A model\n",
    "model.safetensors": WEIGHTS,
    "a-b": b"sorts before a/b",
    "a/b.txt": b"",
    "a/deep/er.bin": b"\0\1",
    "a0": "nach a/, größer".encode(),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def api(hub) -> HfApi:
    """Ours, with a repository of our own."""
    api = HfApi(endpoint=hub.endpoint, token="hf_ours")
    api.create_repo("ns/x")
    return api


def add(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def write(api: HfApi, files: dict[str, bytes], **options) -> str:
    return api.create_commit("ns/x", add(files), commit_message="Add files", **options).oid


def status_of(call, *args, **kwargs) -> int:
    with pytest.raises(HfHubHTTPError) as error:
        call(*args, **kwargs)
    return error.value.response.status_code


def since(hub, number: int) -> list[tuple[str, str, int | None]]:
    return [(r.method, r.path.rpartition("/")[2], r.status) for r in hub.requests[number:]]


# What is written can be read ------------------------------------------------------------------


def test_what_is_committed_is_read_back_through_every_door(hub, api, tmp_path):
    oid = write(api, FILES, commit_description="All of them.")
    repo = hub.repositories["ns/x"]
    assert repo.head == oid == api.repo_info("ns/x").sha
    expected = FILES | {".gitattributes": repo.files()[".gitattributes"]}
    assert repo.files() == expected
    assert sorted(api.list_repo_files("ns/x")) == sorted(expected)
    for folder in (snapshot_download("ns/x"), snapshot_download("ns/x", local_dir=tmp_path / "d")):
        for path, content in expected.items():
            assert Path(folder, path).read_bytes() == content
    with open(hf_hub_download("ns/x", "a/b.txt", revision=oid)) as file:
        assert file.read() == ""


def test_all_that_is_told_of_a_file_agrees(hub, api):
    write(api, FILES)
    siblings = {s.rfilename: s for s in api.model_info("ns/x", files_metadata=True).siblings}
    paths = api.get_paths_info("ns/x", [*FILES, "a", "none"], expand=True)
    tree = {f.path: f for f in api.list_repo_tree("ns/x", recursive=True)}
    assert [info.path for info in paths] == [*FILES, "a"]
    for info in paths[:-1]:
        sibling, content = siblings[info.path], FILES[info.path]
        assert info.size == sibling.size == tree[info.path].size == len(content)
        assert info.blob_id == sibling.blob_id == tree[info.path].blob_id
        assert info.lfs == sibling.lfs == tree[info.path].lfs
        assert info.last_commit.title == "Add files"
        assert (info.lfs is not None) == info.path.endswith((".bin", ".safetensors"))
        if info.lfs:
            assert info.lfs.sha256 == hashlib.sha256(content).hexdigest()
    assert {f.path for f in api.list_repo_tree("ns/x", "a")} == {"a/b.txt", "a/deep"}
    assert api.model_info("ns/x").card_data.tags == ["born-again"]


def git(folder, *command: str, given: bytes | None = None, **env: str) -> str:
    environ = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull} | env
    done = subprocess.run(
        ["git", *command], cwd=folder, input=given, env=environ, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def test_ids_are_those_that_git_computes(hub, api, tmp_path):
    write(api, FILES, commit_description="Zwei Sätze.\n\nUnd noch einer.")
    operations = [CommitOperationDelete("a/deep/", is_folder=True), *add({"README.md": b"new"})]
    api.create_commit("ns/x", operations, commit_message="Ändern")
    hub.commit("ns/x", {}, "delete", delete=["a0"])
    git(tmp_path, "init", "--quiet")
    history = hub.repositories["ns/x"].commits_of("main")[::-1]
    assert [c.title for c in history] == ["initial commit", "Add files", "Ändern", "delete"]
    for commit in history:
        git(tmp_path, "read-tree", "--empty")
        for path, file in commit.files.items():
            blob = git(tmp_path, "hash-object", "-w", "--stdin", given=file.blob)
            assert blob == file.oid
            git(tmp_path, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
        tree = git(tmp_path, "write-tree")
        assert tree == commit.trees[""]
        who = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in {
                "NAME": commit.author,
                "EMAIL": f"{commit.author}@users.noreply.huggingface.co",
                "DATE": f"{int(commit.date.timestamp())} +0000",
            }.items()
        }
        parent = ["-p", commit.parent] if commit.parent else []
        message = commit.message.encode()
        assert commit.id == git(tmp_path, "commit-tree", tree, *parent, given=message, **who)


def test_history_is_told_newest_first_and_can_be_squashed(hub, api):
    write(api, FILES, commit_description="All of them.")
    hub.commit("ns/x", {"README.md": b"theirs"}, "Another's", author="somebody")
    commits = api.list_repo_commits("ns/x")
    assert [c.title for c in commits] == ["Another's", "Add files", "initial commit"]
    assert [c.message for c in commits] == ["", "All of them.", ""]
    assert [c.authors for c in commits] == [["somebody"], ["ns"], ["ns"]]
    assert [c.commit_id for c in commits] == [c.id for c in hub.repositories["ns/x"].commits_of()]
    before = hub.repositories["ns/x"].files()
    api.super_squash_history("ns/x", commit_message="one")
    assert [c.title for c in api.list_repo_commits("ns/x")] == ["one"]
    assert hub.repositories["ns/x"].files() == before


# LFS ------------------------------------------------------------------------------------------


def uploads(hub) -> int:
    return sum(request.path.startswith("/lfs/") for request in hub.requests)


def test_an_object_is_uploaded_once(hub, api):
    write(api, {"model.safetensors": WEIGHTS})
    write(api, {"again.safetensors": WEIGHTS, "other.safetensors": b"other"})
    assert uploads(hub) == 2
    assert hub.repositories["ns/x"].files()["again.safetensors"] == WEIGHTS


def test_a_large_file_goes_to_lfs_and_may_come_in_chunks(hub, api, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(b"\0" * (10 * 2**20 + 1))
    api.upload_file(path_or_fileobj=large, path_in_repo="large", repo_id="ns/x")
    assert api.get_paths_info("ns/x", "large")[0].lfs is not None
    url = hub.endpoint + hub.sign(f"/lfs/ns/x/{hashlib.sha256(b'in parts').hexdigest()}/8")
    assert get_session().put(url, content=iter([b"in ", b"parts"])).status_code == 200


def test_an_upload_must_be_what_it_claims(hub, api):
    oid = hashlib.sha256(b"1234").hexdigest()
    url = hub.endpoint + hub.sign(f"/lfs/ns/x/{oid}/4")
    assert get_session().put(url, content=b"123").status_code == 400
    assert get_session().put(url, content=b"1235").status_code == 400
    assert get_session().put(url + "0", content=b"1234").status_code == 403  # not signed by us
    assert oid not in hub.repositories["ns/x"].objects


def test_a_commit_of_what_was_never_uploaded_is_refused(hub, api):
    addition = CommitOperationAdd("model.safetensors", WEIGHTS)
    api.preupload_lfs_files("ns/x", [addition])
    hub.repositories["ns/x"].objects.clear()
    head = hub.repositories["ns/x"].head
    with pytest.raises(BadRequestError, match="does not exist"):
        api.create_commit("ns/x", [addition], commit_message="hollow")
    assert hub.repositories["ns/x"].head == head


def test_what_is_served_can_be_tampered_with(hub, api):
    write(api, FILES)
    before = api.model_info("ns/x", files_metadata=True).siblings
    hub.tamper("ns/x", "model.safetensors", WEIGHTS[::-1])
    hub.tamper("ns/x", "a-b", b"longer than it is said to be")
    assert api.model_info("ns/x", files_metadata=True).siblings == before
    with open(hf_hub_download("ns/x", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS[::-1]
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download("ns/x", "a-b")
    write(api, {"model.safetensors": b"new"})  # other content is not affected
    with open(hf_hub_download("ns/x", "model.safetensors"), "rb") as file:
        assert file.read() == b"new"


# Parents, tags and branches -------------------------------------------------------------------


def test_a_commit_on_a_stale_parent_is_refused(hub, api):
    parent = hub.repositories["ns/x"].head
    theirs = hub.commit("ns/x", {"theirs": b"1"}, "meanwhile")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        write(api, FILES, parent_commit=parent)
    assert error.value.response.status_code == 412
    assert hub.repositories["ns/x"].head == theirs.id
    write(api, {"a": b"1"}, parent_commit=theirs.id)
    hub.ignores_parent = True
    write(api, FILES, parent_commit=parent)
    assert {"theirs", *FILES} <= set(hub.repositories["ns/x"].files())


def test_deletions(hub, api):
    write(api, FILES)
    api.delete_file("a0", "ns/x")
    api.delete_folder("a", "ns/x")
    assert set(hub.repositories["ns/x"].files()) == {
        *(".gitattributes", "README.md", "a-b", "model.safetensors")
    }
    with pytest.raises(EntryNotFoundError):
        api.delete_file("a0", "ns/x")


def test_tags_and_branches_name_commits(hub, api):
    first, second = write(api, {"a": b"1"}), write(api, {"a": b"2"})
    api.create_tag("ns/x", tag="v/1", revision=first)
    api.create_branch("ns/x", branch="try", revision=first)
    third = write(api, {"a": b"3"}, revision="try")
    assert status_of(api.create_tag, "ns/x", tag="v/1") == 409
    assert status_of(api.create_branch, "ns/x", branch="try") == 409
    refs = api.list_repo_refs("ns/x")
    assert {b.name: b.target_commit for b in refs.branches} == {"main": second, "try": third}
    assert [(t.ref, t.target_commit) for t in refs.tags] == [("refs/tags/v/1", first)]
    for revision, content in {"v/1": "1", "main": "2", "try": "3", first: "1"}.items():
        with open(hf_hub_download("ns/x", "a", revision=revision)) as file:
            assert file.read() == content
    api.delete_tag("ns/x", tag="v/1")
    for revision in ("v/1", first[:8], "f" * 40):  # an id is given in full
        with pytest.raises(RevisionNotFoundError):
            api.repo_info("ns/x", revision=revision)
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("ns/x", tag="v/1")


def test_what_is_not_there_is_not_found(hub, api):
    assert api.file_exists("ns/x", ".gitattributes")
    assert not api.file_exists("ns/x", "none")
    assert not api.file_exists("ns/x", "none", revision="none")
    assert not api.repo_exists("ns/none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ns/x", "none")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("ns/x", revision="none")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("ns/x", "none"))
    with pytest.raises(ValueError, match="Invalid metadata"):
        write(api, {"README.md": b"---\na: [\n---\n"})


# Who may do what ------------------------------------------------------------------------------


def client(hub, token: str | None) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token or False)


def test_repositories_are_created_once_and_deleted(hub, api):
    assert status_of(api.create_repo, "ns/x") == 409
    url = api.create_repo("ns/x", exist_ok=True)
    assert (url.repo_id, str(url)) == ("ns/x", f"{hub.endpoint}/ns/x")
    hub.commit("somebody/y", {"a": b"1"})
    assert [m.id for m in api.list_models(author="ns")] == ["ns/x"]
    assert [m.id for m in api.list_models()] == ["ns/x", "somebody/y"]
    api.delete_repo("ns/x")
    api.delete_repo("ns/x", missing_ok=True)
    assert not api.repo_exists("ns/x")


def test_writing_needs_the_token_of_the_namespace(hub, api):
    for token, status in {None: 401, "hf_unknown": 401, "hf_theirs": 403}.items():
        other = client(hub, token)
        assert status_of(other.create_repo, "ns/y") == status
        assert status_of(other.delete_repo, "ns/x") == status
        assert status_of(other.create_tag, "ns/x", tag="v1") == status
        assert status_of(other.update_repo_settings, "ns/x", private=True) == status
        assert status_of(write, other, {"a": b"1"}) == status
    assert client(hub, "hf_theirs").whoami()["name"] == "somebody"
    assert status_of(client(hub, "hf_unknown").whoami) == 401
    assert status_of(client(hub, "hf_unknown").repo_info, "ns/x") == 401
    assert set(hub.repositories["ns/x"].files()) == {".gitattributes"}


def test_private_is_for_the_owner_alone(hub, api):
    api.create_repo("ns/secret", private=True)
    hub.commit("ns/secret", {"a": b"1", "b.bin": b"2"}, "private")
    assert api.repo_info("ns/secret").private
    assert hf_hub_download("ns/secret", "b.bin")
    assert [m.id for m in api.list_models()] == ["ns/x", "ns/secret"]
    for token, status in {None: 401, "hf_theirs": 404}.items():
        other = client(hub, token)
        assert [m.id for m in other.list_models()] == ["ns/x"]
        assert not other.repo_exists("ns/secret")
        assert not other.file_exists("ns/secret", "a")
        assert status_of(other.repo_info, "ns/secret") == status
        with pytest.raises(RepositoryNotFoundError):
            other.snapshot_download("ns/secret", cache_dir="unused")
    api.update_repo_settings("ns/secret", private=False)
    assert client(hub, None).file_exists("ns/secret", "a")
    hub.ignores_private = True
    api.create_repo("ns/leaked", private=True)
    assert client(hub, None).repo_exists("ns/leaked")


def test_tokens_do_not_leave_the_hub(hub, api):
    write(api, FILES)
    snapshot_download("ns/x")
    elsewhere = [r.token for r in hub.requests if r.path.startswith(("/cdn/", "/lfs/"))]
    assert elsewhere == [None] * 4
    assert {r.token for r in hub.requests if not r.path.startswith(("/cdn/", "/lfs/"))} == {
        "hf_ours"
    }


# What goes wrong ------------------------------------------------------------------------------


def tag(api: HfApi, name: str = "v1") -> None:
    """A write of one request, that the client does not send again by itself."""
    api.create_tag("ns/x", tag=name)


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
    tag(api, "first")
    with pytest.raises(error):
        tag(api)
    assert ("v1" in hub.repositories["ns/x"].tags) == done
    assert hub.requests[-1].status == (503 if "error" in kind else None)
    tag(api, "third")
    assert {"first", "third"} <= set(hub.repositories["ns/x"].tags)


@pytest.mark.parametrize("kind", ["error", "error_after", "drop", "drop_after"])
def test_the_client_uploads_again_until_it_succeeds(hub, api, kind):
    hub.fail(3, kind, times=3)  # after preupload and batch
    write(api, {"model.safetensors": WEIGHTS})
    lost = 503 if "error" in kind else None
    assert [r.status for r in hub.requests if r.path.startswith("/lfs/")] == [lost] * 3 + [200]
    assert hub.repositories["ns/x"].files()["model.safetensors"] == WEIGHTS


def test_a_slow_answer_is_late_and_no_other_waits_for_it(hub, api):
    hub.fail(1, "slow", seconds=0.3)
    thread, start = threading.Thread(target=tag, args=(api,)), time.perf_counter()
    thread.start()
    while "v1" not in hub.repositories["ns/x"].tags:
        time.sleep(0.001)
    api.repo_info("ns/x")
    assert time.perf_counter() - start < 0.25
    thread.join()
    assert time.perf_counter() - start >= 0.3
    hub.fail(1, "slow", seconds=60)
    with pytest.raises(HTTPError, match="timed out"):
        api.model_info("ns/x", timeout=0.05)


def test_a_stale_answer_is_from_before_the_last_write(hub, api):
    first = write(api, {"a": b"1"})
    second = write(api, {"a": b"2"})
    hub.fail(1, "stale", times=2)
    assert api.repo_info("ns/x").sha == first
    assert api.list_repo_commits("ns/x")[0].commit_id == first
    assert api.repo_info("ns/x").sha == second
    hub.fail(1, "stale", times=2)
    tag(api)
    assert api.list_repo_refs("ns/x").tags == []
    assert [t.name for t in api.list_repo_refs("ns/x").tags] == ["v1"]


def test_a_download_that_is_cut_goes_on(hub, api):
    write(api, {"model.safetensors": WEIGHTS})
    hub.fail(2, "cut")
    with open(hf_hub_download("ns/x", "model.safetensors"), "rb") as file:
        assert file.read() == WEIGHTS
    assert [r.method for r in hub.requests[-3:]] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize("path", ["model.safetensors", "README.md"])
def test_a_part_can_be_asked_for(hub, api, path):
    write(api, FILES)
    size = len(FILES[path])
    for asked, part in {
        "2-5": slice(2, 6),
        "7-": slice(7, None),
        "3-999999": slice(3, None),
    }.items():
        headers = {"Range": f"bytes={asked}", "Authorization": "Bearer hf_ours"}
        answer = get_session().get(f"{hub.endpoint}/ns/x/resolve/main/{path}", headers=headers)
        assert (answer.status_code, answer.content) == (206, FILES[path][part])
        assert answer.headers["Content-Range"].endswith(f"/{size}")
    headers["Range"] = f"bytes={size}-"
    answer = get_session().get(f"{hub.endpoint}/ns/x/resolve/main/{path}", headers=headers)
    assert answer.status_code == 416


@pytest.mark.parametrize("length", ["Content-Length: 31", "Transfer-Encoding: chunked"])
def test_nothing_is_done_of_half_a_request(hub, api, length):
    head = "POST /api/models/ns/x/tag/main HTTP/1.1\r\nAuthorization: Bearer hf_ours\r\n"
    body = '{"tag": "v1"}' if "Content" in length else 'd\r\n{"tag": "v1"}\r\n'
    with socket.create_connection(("127.0.0.1", hub.port)) as connection:
        connection.sendall(f"{head}{length}\r\n\r\n{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert hub.requests[-1].status is None
    assert hub.repositories["ns/x"].tags == {}


def test_faults_are_forgotten(hub, api):
    hub.fail(1, "error", times=10)
    assert status_of(tag, api) == 503
    hub.heal()
    tag(api)
    with pytest.raises(ValueError, match="no such fault"):
        hub.fail(1, "typo")


def test_the_store_can_be_set_back(hub, api):
    write(api, FILES)
    state = hub.snapshot()
    for _ in range(2):
        before = hub.repositories["ns/x"].files()
        other = write(api, {"model.safetensors": b"other"})
        tag(api)
        api.create_repo("ns/y")
        hub.restore(state)
        assert hub.repositories["ns/x"].files() == before
        assert hub.repositories["ns/x"].tags == {}
        assert list(hub.repositories) == ["ns/x"]
        assert write(api, {"model.safetensors": b"other"}) == other  # the clock is set back too
        hub.restore(state)


# Another process, another socket ---------------------------------------------------------------


def test_a_socket_that_listens_already_is_used():
    listener = socket.create_server(("127.0.0.1", 0))
    with LoopbackHub(listener=listener, tokens={"hf_only": "me"}) as hub:
        assert hub.endpoint.endswith(f":{listener.getsockname()[1]}")
        hub.commit("me/x", {})
        url = f"{hub.endpoint}/api/models/me/x"
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
            assert answer.status == 200


def test_another_process_is_told_by_its_environment(hub, api, tmp_path):
    write(api, FILES)
    start = len(hub.requests)
    code = (
        "from huggingface_hub import HfApi, snapshot_download;"
        "print(HfApi().whoami()['name'], snapshot_download('ns/x'))"
    )
    env = os.environ | environment(hub, tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"ns {tmp_path / 'home'}")
    assert hub.requests[start].path == "/api/whoami-v2"
