"""Calls to the Hub that survive what passes: timeouts, lost connections, 5xx, a stale answer."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ban_hf.errors import HubError

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: The client's own, of httpx or, since huggingface_hub 2, of httpx2.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
TIMEOUT = 60.0  # seconds without a byte; huggingface_hub itself would wait for ever
PASSING = (408, 409, 412, 425, 429)  # beside 5xx: what another look at the repository may mend


class UnsettledError(Exception):
    """The Hub does not show yet what was done a moment ago."""


def persistently(what: str, call: Callable[[], T]) -> T:
    """Call until it succeeds, waiting longer each time; what cannot pass is raised at once.

    Args:
        what: for messages: the repository and, if it matters, the file.
        call: is made again from its beginning, and so must look at what stands before it writes.

    Raises:
        HubError: naming what the Hub said last.
    """
    for wait in (*WAITS, None):
        try:
            with _timeouts():
                return call()
        except (HTTPError, OSError, RuntimeError, UnsettledError, HFValidationError) as error:
            reason = _reason(error)
            if not _may_pass(error):
                raise HubError(f"{what}: {reason}") from error
            if wait is None:
                raise HubError(
                    f"{what}: {reason} ({len(WAITS) + 1} attempts). Nothing that is finished is "
                    "lost: give the same command again."
                ) from error
        logger.warning("%s: %s Trying again in %g s.", what, reason, wait)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def clean_token(token: str | None) -> str | None:
    """A token as it was given, without the line break of the file that it stood in.

    Raises:
        HubError: if it cannot be one; the message does not hold it.
    """
    token = token.strip() if token is not None else None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise HubError("the token has characters that none has: give it as the Hub showed it.")
    return token or None


@contextmanager
def _timeouts() -> Iterator[None]:
    session = get_session()
    before, session.timeout = session.timeout, TIMEOUT
    try:
        yield
    finally:
        session.timeout = before


def _may_pass(error: Exception) -> bool:
    if isinstance(error, RuntimeError):  # an upload's: what it was is its cause
        return not isinstance(error.__cause__, HfHubHTTPError) or _may_pass(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in PASSING
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache, and the Hub unreachable
        return not isinstance(error.__cause__, OfflineModeIsEnabled)
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError | HFValidationError):
        return False
    return not (isinstance(error, OSError) and error.errno)  # the disk is full, and stays so


def _reason(error: Exception) -> str:
    """What went wrong in one sentence, and the fix where there is one; never a token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return (
            "the Hub asks for a token with the right to do this: `hf auth login`, or set HF_TOKEN "
            "(a private repository that is not yours answers so, too, and one that is not there)."
        )
    if status == 404:
        return "there is no such repository, revision or file on the Hub, or it is private."
    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to reach the Hub."
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    text = str(cause or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
