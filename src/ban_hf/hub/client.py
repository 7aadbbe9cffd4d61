"""Calls to the Hub that survive what passes: timeouts, lost connections, 5xx, stale answers.

huggingface_hub repeats single requests of an upload. A publication is more than one request: it
looks, writes, and reads back. `with_retries` repeats it as a whole, on tenacity.
"""

import logging
import re
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential

from ban_hf.errors import HubError

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: The client's own, of httpx or, since huggingface_hub 2, of httpx2.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

ATTEMPTS = 6
FIRST_WAIT = 1.0  # seconds; each further wait is twice as long
TIMEOUT = 60.0  # seconds without a byte; huggingface_hub itself has no limit
PASSING = (408, 409, 412, 425, 429)  # beside 5xx: another look at the repository may help


class NotYetVisibleError(Exception):
    """The Hub does not show yet what was done a moment ago."""


def with_retries(what: str, call: Callable[[], T]) -> T:
    """Call until it succeeds, with longer and longer waits; a lasting error is raised at once.

    Args:
        what: for messages: the repository and, if it matters, the file.
        call: is repeated from its beginning, so it must look at what exists before it writes.

    Raises:
        HubError: with the last answer of the Hub.
    """

    def warn(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s: %s Trying again in %g s.", what, _reason(error), state.upcoming_sleep)

    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(FIRST_WAIT, min=0.0),
        before_sleep=warn,
        reraise=True,
    )
    session = get_session()
    before, session.timeout = session.timeout, TIMEOUT
    try:
        return retrying(call)
    except (HTTPError, OSError, RuntimeError, NotYetVisibleError, HFValidationError) as error:
        reason = _reason(error)
        if _may_pass(error):
            reason += (
                f" ({ATTEMPTS} attempts). Nothing that is finished is lost: give the same command "
                "again."
            )
        raise HubError(f"{what}: {reason}") from error
    finally:
        session.timeout = before


def clean_token(token: str | None) -> str | None:
    """A token without the line break of the file that it was read from."""
    token = token.strip() if token is not None else None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise HubError("the token has characters that none has: give it as the Hub showed it.")
    return token or None


def _may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, RuntimeError):  # of an upload; the error itself is its cause
        return not isinstance(error.__cause__, HfHubHTTPError) or _may_pass(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in PASSING
    if isinstance(error, LocalEntryNotFoundError):  # not in the cache, and the Hub unreachable
        return not isinstance(error.__cause__, OfflineModeIsEnabled)
    if isinstance(error, OfflineModeIsEnabled | LocalTokenNotFoundError | HFValidationError):
        return False
    if isinstance(error, OSError):
        return not error.errno  # a full disk stays full
    return isinstance(error, HTTPError | NotYetVisibleError)


def _reason(error: BaseException | None) -> str:
    """What went wrong in one sentence, and the fix if there is one; never a token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return (
            "the Hub asks for a token with the right to do this: `hf auth login`, or set HF_TOKEN "
            "(it answers the same for a private repository of others and for a missing one)."
        )
    if status == 404:
        return "there is no such repository, revision or file on the Hub, or it is private."
    cause = error.__cause__ if error else None
    if isinstance(error, OfflineModeIsEnabled) or isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to reach the Hub."
    shown = cause if isinstance(error, RuntimeError) and cause else error
    text = str(shown).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
