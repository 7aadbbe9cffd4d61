"""A mirror written by others, olah, reads our loopback Hub as it reads the real one.

Opt-in: `pip install olah` into an environment of its own, and set BAN_HF_OLAH to its `olah-cli`.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from loopback_hub.client import environment

OLAH = os.environ.get("BAN_HF_OLAH")
FILES = {
    "README.md": b"# A model\n",
    "model.safetensors": bytes(range(256)) * 1000,
    "sub/empty.txt": b"",
}

pytestmark = pytest.mark.skipif(not OLAH, reason="BAN_HF_OLAH does not name an olah-cli")


@contextmanager
def mirror(hub: LoopbackHub, folder: Path) -> Iterator[str]:
    """The endpoint of a mirror of a Hub."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here, there = f"127.0.0.1:{port}", f"127.0.0.1:{hub.port}"
    command = f"--host 127.0.0.1 --port {port} --repos-path repos --log-path logs"
    command += f" --hf-scheme http --hf-netloc {there} --hf-lfs-netloc localhost:{hub.port}"
    command += f" --mirror-scheme http --mirror-netloc {here} --mirror-lfs-netloc {here}"
    with (
        (folder / "output").open("w") as output,
        subprocess.Popen(
            [OLAH, *command.split()], cwd=folder, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            wait_for(port)
            yield f"http://{here}"
        finally:
            process.terminate()


def wait_for(port: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def download(hub: LoopbackHub, endpoint: str, home: Path) -> Path:
    """Where a fresh process, with a fresh cache, puts what it downloads from the mirror."""
    code = "from huggingface_hub import snapshot_download; print(snapshot_download('ns/x'))"
    env = os.environ | environment(hub, home) | {"HF_ENDPOINT": endpoint}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return Path(done.stdout.decode().strip())


def test_a_mirror_hands_on_the_same_bytes(tmp_path):
    with LoopbackHub() as hub, mirror(hub, tmp_path) as endpoint:
        commit = hub.commit("ns/x", FILES, "Add files")
        for home in ("first", "second"):
            start = len(hub.requests)
            folder = download(hub, endpoint, tmp_path / home)
            assert folder.name == commit.id
            for path, content in hub.repositories["ns/x"].files().items():
                assert (folder / path).read_bytes() == content
            fetched = any(request.path.startswith("/cdn/") for request in hub.requests[start:])
            assert fetched == (home == "first")  # the second time, from its cache
