"""A Hugging Face Hub on the loopback, for the real clients to talk to.

Nothing is mocked: `huggingface_hub` and `transformers` send real HTTP to a real socket, and what
they commit is stored as git would store it, under git's own ids. What can go wrong with a Hub far
away (`LoopbackHub.fail`, `LoopbackHub.tamper`) can be made to go wrong at any request.
"""

from .faults import KINDS
from .server import LoopbackHub, Request
from .store import Commit, File, Repository

__all__ = ["KINDS", "Commit", "File", "LoopbackHub", "Repository", "Request"]
