"""The Hub's socket: HTTP/1.1 with keep-alive, one thread per connection."""

import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .api import Answer, Call, dispatch, refused
from .store import Commit, Refusal, Repository, Store

OUT_OF_ORDER = Refusal(503, "Service Unavailable")
KINDS = {
    "error": "503, and nothing is done",
    "error_after": "the request is carried out, then answered with 503",
    "drop": "the connection is closed while the body is being read, and nothing is done",
    "drop_after": "the request is carried out, then the connection is closed without an answer",
    "cut": "carried out, then the connection is closed in the middle of the answer's body",
    "slow": "carried out, but answered only after some seconds",
    "stale": "a GET or HEAD is answered from before the last write; a write is carried out",
}


@dataclass(frozen=True)
class Fault:
    """One kind of failure, at the requests `first` to `last`."""

    kind: str
    first: int
    last: int
    seconds: float


@dataclass
class Request:
    """A request that arrived; `status` is what its client was told, None if it was told nothing."""

    number: int  # from 1
    method: str
    path: str  # as sent, without the query
    token: str | None
    status: int | None = None


class LoopbackHub:
    """A Hub at 127.0.0.1, for as long as the context lasts.

    Each token belongs to a user, whose namespace has the user's name.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_ours": "ns", "hf_theirs": "another"}
        self.ignores_private = False  # creates repositories as public, whatever is asked
        self.ignores_parent = False  # accepts a commit whose parent is not the head
        self.requests: list[Request] = []
        self.store = Store()
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.crashes: list[BaseException] = []
        self._faults: list[Fault] = []
        self._server = Server(self)
        self.port = self._server.socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}"  # another host: clients do not send tokens there

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        if self.crashes:  # a mistake of ours must not pass for a fault that a client survived
            raise self.crashes[0]

    @property
    def repositories(self) -> dict[str, Repository]:
        return self.store.repositories

    def fail(self, n: int, kind: str, times: int = 1, seconds: float = 1.0) -> None:
        """Let the `n`-th request from now, and the `times - 1` after it, go wrong."""
        assert kind in KINDS
        with self.lock:
            first = len(self.requests) + n
            self._faults.append(Fault(kind, first, first + times - 1, seconds))

    def heal(self) -> None:
        """Forget all faults."""
        with self.lock:
            self._faults = []

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        title: str = "a commit",
        delete: Iterable[str] = (),
    ) -> Commit:
        """A commit straight into the store; the repository is created (public) if need be."""
        with self.lock, self.store.change():
            repository = self.repositories.get(repo_id) or self.store.create(repo_id, False)
            tree = dict(repository.find().files)
            tree |= {path: repository.store(path, content) for path, content in files.items()}
            for path in delete:
                del tree[path]
            return repository.commit(tree, title, self.store.now)

    def tamper(self, repo_id: str, path: str, content: bytes, revision: str = "main") -> None:
        """Serve other bytes for what a file holds now; all that is told of it stays the same."""
        with self.lock:
            repository = self.repositories[repo_id]
            repository.tampered[repository.find(revision).files[path].etag] = content

    def snapshot(self) -> Store:
        with self.lock:
            return self.store.copy()

    def restore(self, state: Store) -> None:
        with self.lock:
            self.store = state.copy()

    def arrive(self, method: str, path: str, token: str | None) -> tuple[Request, Any]:
        """Number a request, and look up what shall go wrong with it."""
        with self.lock:
            request = Request(len(self.requests) + 1, method, path, token)
            self.requests.append(request)
            hits = [fault for fault in self._faults if fault.first <= request.number <= fault.last]
            return request, hits[-1] if hits else None

    def carry_out(self, request: Request, target: str, headers: Any, body: bytes, stale: bool):
        """Do what a request asks, one at a time."""
        with self.lock:
            reads_stale = stale and request.method in ("GET", "HEAD")
            call = Call(
                hub=self,
                repositories=self.store.before if reads_stale else self.repositories,
                method=request.method,
                target=target,
                token=request.token,
                headers=headers,
                body=body,
            )
            try:
                return dispatch(call)
            except Refusal as refusal:
                return refused(refusal)
            except Exception as error:
                self.crashes.append(error)
                return refused(Refusal(500, f"the loopback Hub crashed: {error!r}"))


class Server(ThreadingHTTPServer):
    """Listens at a free port, and knows its open connections."""

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.connections: set[socket.socket] = set()

    def hang_up(self) -> None:
        """End the connections that clients keep alive, and with them their threads."""
        for connection in tuple(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news; anything else is a mistake of ours."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.hub.crashes.append(error)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def respond(self) -> None:
        """Read a request, carry it out and answer it, or fail at one of the three."""
        hub = self.server.hub
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        path = self.path.partition("?")[0]
        request, fault = hub.arrive(self.command, path, token if kind == "Bearer" else None)
        what = fault.kind if fault else None
        if what == "drop":
            if int(self.headers.get("Content-Length", 0)):
                self.rfile.peek(1)  # the body is on its way
            return self.drop()
        body = self.read(int(self.headers.get("Content-Length", 0)))
        if what == "error":
            return self.send(request, refused(OUT_OF_ORDER))
        answer = hub.carry_out(request, self.path, self.headers, body, what == "stale")
        if what == "drop_after":
            return self.drop()
        if what == "slow":
            hub.closing.wait(fault.seconds)
        self.send(request, refused(OUT_OF_ORDER) if what == "error_after" else answer, what)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def read(self, size: int) -> bytes:
        """All that was announced: of half a request, its sender killed, nothing is done."""
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError
        return body

    def send(self, request: Request, answer: Answer, fault: str | None = None) -> None:
        """Headers and body in one piece: two would wait for each other's acknowledgement."""
        request.status = answer.status
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        body = b"" if self.command == "HEAD" else answer.body
        if fault != "cut":
            self.wfile.write(head + body)
        else:
            self.wfile.write(head + body[: len(body) // 2])
            self.drop()

    def drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Not a word: pytest would show it as the test's own output."""
