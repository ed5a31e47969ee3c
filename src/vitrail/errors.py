"""Every error that vitrail raises on purpose.

::

    Exception
    └── VitrailError
        ├── InputError (also ValueError)   a request, flag, prompt or setting that cannot be served
        │   └── UnknownJobError            no job has this id
        ├── QueueFullError                 the queue holds as many jobs as it may
        ├── DataError                      a data set, picture or archive that cannot be read
        ├── ArtifactError                  a model folder that is missing, damaged or of another kind
        ├── CheckpointError                no checkpoint of a run can be loaded, or the folder is in use
        ├── TrainingError                  a training run that must stop
        │   └── NonFiniteError             a loss, gradient or latent became NaN or infinite
        ├── StorageError                   the disk is full, read-only or gone
        │   └── UnreachableError           the database's server is away, perhaps for a moment
        ├── MissingExtraError              an optional dependency is not installed
        └── CancelledError                 the caller asked for the work to stop

A message is one line: what was given, what is allowed, what to do. The command line prints it without a
traceback and exits with ``exit_code``; a server answers 4xx (5xx for storage).
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "CancelledError",
    "CheckpointError",
    "DataError",
    "InputError",
    "MissingExtraError",
    "NonFiniteError",
    "QueueFullError",
    "StorageError",
    "TrainingError",
    "UnknownJobError",
    "UnreachableError",
    "VitrailError",
]


class VitrailError(Exception):
    """Base of every error that vitrail raises on purpose."""

    exit_code: int = 1


class InputError(VitrailError, ValueError):
    """A request, flag, prompt or setting that cannot be served."""

    exit_code = 2


class UnknownJobError(InputError):
    """No job has this id."""


class QueueFullError(VitrailError):
    """The queue holds as many jobs as it may; a server answers 429.

    ``retry_after``: seconds after which a place may be free.
    """

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DataError(VitrailError):
    """A data set, picture or archive that cannot be read."""


class ArtifactError(VitrailError):
    """A model folder that is missing, damaged or of another kind."""


class CheckpointError(VitrailError):
    """No checkpoint of a run can be loaded, or its folder is in use by another run."""


class TrainingError(VitrailError):
    """A training run that must stop."""

    exit_code = 3


class NonFiniteError(TrainingError):
    """A loss, gradient or latent became NaN or infinite."""


class StorageError(VitrailError):
    """The disk is full, read-only or gone."""


class UnreachableError(StorageError):
    """The database's server does not answer; a server of ours answers 503 until it does."""


class MissingExtraError(VitrailError):
    """An optional dependency is not installed; the message names the command that installs it.

    Parameters
    ----------
    package: the distribution that is missing.
    extra: the extra of vitrail that brings it.
    """

    exit_code = 2

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'vitrail[{extra}]'")
        self.package = package
        self.extra = extra


class CancelledError(VitrailError):
    """The caller asked for the work to stop."""

    exit_code = 130
