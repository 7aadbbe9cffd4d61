"""A Hugging Face Hub on the loopback, for the real clients to talk to.

Nothing is mocked: `huggingface_hub` and `transformers` send real HTTP to a real socket. The Hub has
what push, pull and verify use. Any request can be made to go wrong (`LoopbackHub.fail`), and any
file can be tampered with (`LoopbackHub.tamper`).
"""

from .server import KINDS, LoopbackHub, Request
from .store import Commit, File, Repository

__all__ = ["KINDS", "Commit", "File", "LoopbackHub", "Repository", "Request"]
