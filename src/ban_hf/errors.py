"""Errors that a user can fix: all are a `BANError`. Anything else is a bug."""

import difflib
import os
from collections.abc import Iterable, Sequence


class BANError(ValueError):
    """An argument, a file or a repository is wrong; the message says what to change."""


class HubError(BANError):
    """The Hub cannot be reached, or refuses."""


class PublishError(BANError):
    """A repository's content, or who may read it, forbids a publication."""


class LineageError(BANError):
    """A lineage is not what its records say; the subclasses name what is wrong."""


class RecordError(LineageError):
    """A record lacks a field, or a field has a wrong form."""


class BrokenChainError(LineageError):
    """The generations do not fall from student to teacher down to 0."""


class CyclicLineageError(LineageError):
    """A generation is its own ancestor."""


class UnpinnedTeacherError(LineageError):
    """A teacher or member is named by a branch, a tag or a short commit, which can move."""


class TeacherChangedError(LineageError):
    """A teacher or member is not the one that its student or ensemble recorded."""


class TamperedFileError(LineageError):
    """A file's content is not what its record says."""


class UnlistedFileError(LineageError):
    """There are weights or code that the record does not list."""


class UnsoundError(LineageError):
    """A network was trained or measured by a release that did so wrongly."""


class UnverifiableError(LineageError):
    """A network or file that a record names cannot be reached, so nothing is known of it."""


def did_you_mean(name: str, options: Iterable[str], n: int = 1) -> str:
    """` Did you mean 'x'?`, of at most `n` options; `` where none is close to the name."""
    known = {option.lower(): option for option in options}
    near = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=n)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def is_debugging(words: Sequence[str] = ()) -> bool:
    """Whether errors keep their traceback: by `--debug` among the words, or BAN_HF_DEBUG=1."""
    return "--debug" in words or os.environ.get("BAN_HF_DEBUG") == "1"
