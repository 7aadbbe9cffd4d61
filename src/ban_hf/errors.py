"""Errors that a user can mend: all are a `BANError`. Anything else is a bug."""

import difflib
import os
from collections.abc import Iterable, Sequence


class BANError(ValueError):
    """An argument, a file or a repository is not as it must be; the message says what to change."""


class HubError(BANError):
    """The Hub cannot be reached, or refuses."""


class PublishError(BANError):
    """What stands in a repository, or who may read it, forbids a publication."""


class LineageError(BANError):
    """A lineage is not what it says; the subclasses name what is wrong."""


class RecordError(LineageError):
    """A record lacks something, or has it in a form that is none of a record's."""


class BrokenChainError(LineageError):
    """The generations do not fall by one down to 0, or a member is not one of them."""


class CyclicLineageError(LineageError):
    """A generation is its own ancestor."""


class UnpinnedTeacherError(LineageError):
    """A teacher or member is named by what can move: a branch, a tag, a shortened commit."""


class TeacherChangedError(LineageError):
    """A teacher or member is not, or no longer, the one that its student or ensemble recorded."""


class TamperedFileError(LineageError):
    """A file has another content than its record says."""


class UnlistedFileError(LineageError):
    """There are weights, or code, that the record does not name."""


class UnverifiableError(LineageError):
    """Something that is named cannot be reached, so that nothing is known of it."""


def did_you_mean(name: str, options: Iterable[str], n: int = 1) -> str:
    """` Did you mean 'x'?`, or `` where no option is close to the name.

    Args:
        name: what was given.
        options: the names that exist.
        n: the most that are named.
    """
    known = {option.lower(): option for option in options}
    near = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=n)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def is_debugging(words: Sequence[str] = ()) -> bool:
    """Whether errors keep their traceback: by `--debug`, or by BAN_HF_DEBUG=1.

    Args:
        words: of the command line.
    """
    return "--debug" in words or os.environ.get("BAN_HF_DEBUG") == "1"
