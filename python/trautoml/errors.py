"""The exceptions of trautoml: one root, and classes that say whose turn it is to act.

Every message says what was expected, what came, and what to do. `InputError` and its children
are the caller's to mend (the command line exits with 2); the others are not the caller's fault.
"""


class TrautomlError(Exception):
    """Root of all errors that trautoml raises on purpose."""


class InputError(TrautomlError, ValueError):
    """An argument, a file or a setting is not what was expected."""


class TaskError(InputError):
    """A dataset can't be made into a task."""


class SpecError(InputError):
    """A model spec is malformed or names an unknown architecture."""


class GroupingError(InputError):
    """A trials matrix, a decision or a parameter of a grouper is not valid."""


class StoreError(TrautomlError, RuntimeError):
    """A store can't be opened, read or written."""


class EngineError(TrautomlError, RuntimeError):
    """Work could not be run to its end, for example because a worker process died."""


class SearchError(TrautomlError, RuntimeError):
    """A search ended without a usable model.

    Attributes
    ----------
    history : list
        Every training that the search paid for, so that nothing computed is lost.
    """

    def __init__(self, message: str, history: list[object] | None = None) -> None:
        super().__init__(message)
        self.history = history or []
