"""What can be wrong with a lineage, a publication, or the Hub. All are a `ValueError`."""


class HubError(ValueError):
    """The Hub cannot be reached, or refuses."""


class PublishError(ValueError):
    """What stands in a repository, or who may read it, forbids a publication."""


class LineageError(ValueError):
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
