"""How the real clients are told to talk to a loopback Hub."""

import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _detect_agent, _http, tqdm

from .server import LoopbackHub

LOOPBACK = "127.0.0.1,localhost"
NO_AGENTS = {"standardEnvVars": [], "harnesses": {}}  # else a process asks the Hub for it, once


class Hasty:
    """The module `time`, but that nobody sleeps: the client waits seconds before it tries again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.001))


def connect(hub: LoopbackHub, monkeypatch, cache: Path, token: str | None = "hf_ours") -> None:
    """Let this process's `huggingface_hub` and `transformers` talk to a Hub, and to no other.

    Only their configuration is changed, as its environment variables would have at their import,
    and how long they wait before they try again.
    """
    configuration = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
    }
    for name, value in configuration.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(sys.modules[tqdm.__module__], "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", Hasty())
    monkeypatch.setattr(_detect_agent, "_registry", NO_AGENTS)
    transformers_hub = sys.modules.get("transformers.utils.hub")
    if transformers_hub is not None:
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # made again, with this endpoint
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    for name, value in {
        "HF_TOKEN": token or "",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }.items():
        monkeypatch.setenv(name, value)
    if getproxies().keys() - {"no"}:
        huggingface_hub.close_session()  # the next one, 0.1 s away, reads the environment again


def environment(hub: LoopbackHub, home: Path, token: str | None = "hf_ours") -> dict[str, str]:
    """The environment variables, to be added to others, of a process that talks to a Hub."""
    home.mkdir(parents=True, exist_ok=True)
    (home / ".agent_harnesses.json").write_text(json.dumps(NO_AGENTS))
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": token or "",
        "HF_TOKEN_PATH": str(home / "token"),
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }
