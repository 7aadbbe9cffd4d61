"""What the Hub answers: the endpoints that `huggingface_hub` calls, for models."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from .store import Commit, File, Refusal, Repository, goes_to_lfs

if TYPE_CHECKING:
    from .server import LoopbackHub

WILDCARDS = {"repo": "[^/]+/[^/]+?", "path": ".*"}  # any other is one segment
ROUTES: list[tuple[str, re.Pattern[str], Callable[["Call"], "Answer"]]] = []


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A request that is being carried out, and what its sender may see and change."""

    hub: "LoopbackHub"
    repositories: dict[str, Repository]
    method: str
    target: str
    token: str | None
    headers: Any
    body: bytes
    names: dict[str, str] = field(default_factory=dict)  # what the route's wildcards stand for

    @property
    def user(self) -> str | None:
        if self.token is not None and self.token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(self.token)

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def repository(self) -> Repository:
        """The repository, if there is one that the user may see: who may not is told no more."""
        repository, user = self.repositories.get(self.names["repo"]), self.user
        if repository is None or (repository.private and user != repository.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    @property
    def commit(self) -> Commit:
        return self.repository.find(self.names.get("revision", "main"))

    def require_owner(self, namespace: str) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.user != namespace:
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace!r}")

    @contextmanager
    def change(self) -> Iterator[Repository]:
        """The repository, for its owner to change."""
        repository = self.repository
        self.require_owner(repository.owner)
        with self.hub.store.change():
            yield repository


def route(method: str, pattern: str):
    """Register what answers a kind of request."""

    def wildcard(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{WILDCARDS.get(match[1], '[^/]+')})"

    def register(function: Callable[[Call], Answer]) -> Callable[[Call], Answer]:
        regex = re.compile(re.sub(r"{(\w+)}", wildcard, pattern.replace(".", r"\.")))
        ROUTES.append((method, regex, function))
        return function

    return register


def dispatch(call: Call) -> Answer:
    path = call.target.partition("?")[0]
    asked = "GET" if call.method == "HEAD" else call.method
    for method, regex, function in ROUTES:
        match = method == asked and regex.fullmatch(path)
        if match:
            call.names = {name: unquote(value) for name, value in match.groupdict().items()}
            return function(call)
    raise Refusal(404, f"the loopback Hub knows no {call.method} {path}")


def answer(data: Any = None, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(data).encode(), {"Content-Type": "application/json"} | headers)


def refused(refusal: Refusal) -> Answer:
    headers = {"X-Error-Message": refusal.message.replace("\n", " ")} | refusal.headers
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return answer({"error": refusal.message}, refusal.status, **headers)


def time(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


# Who and what there is


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    if call.user is None:
        raise Refusal(401, "Invalid username or password.")
    return answer({"type": "user", "id": call.user, "name": call.user, "orgs": []})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    return answer({"errors": [], "warnings": []})


def sibling(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "blobId": file.oid, "size": file.size}
    if file.sha256:
        entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.blob)}
    return entry


@route("GET", "/api/models/{repo}")
@route("GET", "/api/models/{repo}/revision/{revision}")
def model_info(call: Call) -> Answer:
    repository, commit = call.repository, call.commit
    facts = {"id": repository.id, "sha": commit.id, "private": repository.private}
    siblings = [sibling(path, file) for path, file in sorted(commit.files.items())]
    return answer(facts | {"tags": [], "siblings": siblings})


@route("GET", "/api/models/{repo}/tree/{revision}")
def tree(call: Call) -> Answer:
    """All files, as `recursive` lists them."""
    files = sorted(call.commit.files.items())
    return answer([{"type": "file", "oid": f.oid, "size": f.size, "path": p} for p, f in files])


@route("GET", "/api/models/{repo}/refs")
def refs(call: Call) -> Answer:
    tags = [
        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
        for name, commit in call.repository.tags.items()
    ]
    return answer({"branches": [], "converts": [], "tags": tags, "pullRequests": []})


@route("GET", "/api/models/{repo}/commits/{revision}")
def list_commits(call: Call) -> Answer:
    commits = call.repository.commits_of(call.names["revision"])
    rest = {"authors": [], "message": ""}
    return answer([{"id": c.id, "title": c.title, "date": time(c.date)} | rest for c in commits])


# Repositories and tags


@route("POST", "/api/repos/create")
def create(call: Call) -> Answer:
    namespace, hub = call.data.get("organization") or call.user, call.hub
    call.require_owner(namespace)
    repo_id = f"{namespace}/{call.data['name']}"
    url = {"url": f"{hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in hub.repositories:
        error = {"error": f"You already created this model repo: {repo_id}"}
        return answer(error | url, 409, **{"X-Error-Message": error["error"]})
    private = call.data.get("visibility") == "private" and not hub.ignores_private
    with hub.store.change():
        hub.store.create(repo_id, private)
    return answer(url)


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(call: Call) -> Answer:
    with call.change() as repository:
        commit, tag = call.commit, call.data["tag"]
        if tag in repository.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = commit.id
    return answer({"success": True})


# Commits


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(call: Call) -> Answer:
    call.require_owner(call.repository.owner)
    held, files = call.commit.files, []
    for file in call.data["files"]:
        path = file["path"]
        mode = "lfs" if goes_to_lfs(path) else "regular"
        oid = held[path].etag if path in held else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return answer({"files": files})


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def lfs_batch(call: Call) -> Answer:
    """Say where to upload objects; one that is here already is not asked for again."""
    repository, hub, objects = call.repository, call.hub, []
    call.require_owner(repository.owner)
    for item in call.data["objects"]:
        entry = {"oid": item["oid"], "size": item["size"], "authenticated": True}
        if item["oid"] not in repository.objects:
            upload = f"{hub.endpoint}/lfs/{repository.id}/{item['oid']}/{item['size']}"
            entry["actions"] = {"upload": {"href": upload}}
        objects.append(entry)
    return answer({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/{repo}/{oid}/{size}")
def lfs_upload(call: Call) -> Answer:
    """An object; no token comes with it."""
    oid = call.names["oid"]
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise Refusal(400, "XAmzContentSHA256Mismatch")
    call.repositories[call.names["repo"]].objects[oid] = call.body
    return Answer(headers={"ETag": f'"{oid}"'})


def added(repository: Repository, kind: str, value: dict[str, Any]) -> File:
    """The file that a line of a commit adds."""
    if kind == "file":
        return File.regular(base64.b64decode(value["content"]))
    stored = repository.objects.get(value["oid"])
    if stored is None or len(stored) != value.get("size", len(stored)):
        why = "an LFS pointer pointed to a file that does not exist"
        raise Refusal(400, f"Your push was rejected because {why}: {value['path']}")
    return File.lfs(value["oid"], len(stored))


@route("POST", "/api/models/{repo}/commit/main")
def create_commit(call: Call) -> Answer:
    hub = call.hub
    (_, header), *lines = [json.loads(line).values() for line in call.body.splitlines()]
    with call.change() as repository:
        head = repository.head
        if not hub.ignores_parent and not head.startswith(header.get("parentCommit", "")):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.find(head).files)
        for kind, value in lines:
            if kind == "deletedFile":
                del files[value["path"]]
            else:
                files[value["path"]] = added(repository, kind, value)
        commit = repository.commit(files, header["summary"], hub.store.now)
    url = f"{hub.endpoint}/{repository.id}/commit/{commit.id}"
    return answer({"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})


# Downloads


def download(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    """The content, or the range of it that is asked for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
    if not asked:
        return Answer(200, content, headers)
    first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if first > last:
        range_ = {"Content-Range": f"bytes */{len(content)}"}
        raise Refusal(416, "Range Not Satisfiable", **range_)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Answer(206, content[first : last + 1], headers)


@route("GET", "/{repo}/resolve/{revision}/{path}")
def resolve(call: Call) -> Answer:
    repository, commit, path = call.repository, call.commit, call.names["path"]
    headers = {"X-Repo-Commit": commit.id}
    if path not in commit.files:
        raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
    file = commit.files[path]
    headers["ETag"] = f'"{file.etag}"'
    if file.sha256:
        location = f"{call.hub.cdn}/cdn/{quote(repository.id)}/{file.sha256}"
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return Answer(302, b"", headers | {"Location": location})
    if call.method == "HEAD":
        return Answer(200, b"", headers | {"Content-Length": str(file.size)})
    return download(call, repository.served(file), headers)


@route("GET", "/cdn/{repo}/{oid}")
def cdn(call: Call) -> Answer:
    """An object behind an LFS pointer; no token comes with the request."""
    repository, oid = call.repositories[call.names["repo"]], call.names["oid"]
    content = repository.tampered.get(oid, repository.objects[oid])
    return download(call, content, {"ETag": f'"{oid}"'})
