"""Everything that banaudit raises on purpose.

The tree::

    BanauditError
    ├── CheckpointError            the file cannot become a model
    │   ├── UnsafeCheckpointError  loading it would run code
    │   ├── UnknownFormatError     not a checkpoint, empty, truncated, or a bomb
    │   └── ArchitectureError      weights and architecture disagree
    ├── DataError                  the clean data are unusable: shape, range, labels, too few a class
    ├── UnsupportedModelError      this method cannot judge this model: the finding is *inconclusive*
    ├── TimeLimitReached           the time the user gave is spent: the verdict is *inconclusive*
    └── UsageError                 arguments that contradict each other or the machine (no such device, ...)

A message is one line: the file or setting concerned, what was expected, what was found, and the next step.
"""

from __future__ import annotations


class BanauditError(Exception):
    """Base of every error that banaudit raises on purpose."""


class CheckpointError(BanauditError):
    """The file cannot become a model."""


class UnsafeCheckpointError(CheckpointError):
    """Loading the file would run code that it carries.

    Args:
        message: One line for the user.
        offenders: Qualified names of the globals the file asks for, e.g. ``os.system``.
    """

    def __init__(self, message: str, offenders: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.offenders = offenders


class UnknownFormatError(CheckpointError):
    """The file is no checkpoint that banaudit reads: empty, truncated, a bomb, or something else."""


class ArchitectureError(CheckpointError):
    """Weights and architecture disagree.

    Args:
        message: One line for the user.
        missing: Keys that the architecture needs and the file lacks.
        unexpected: Keys that the file has and the architecture does not know.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), unexpected: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected


class DataError(BanauditError):
    """The clean images or their labels cannot be used."""


class UnsupportedModelError(BanauditError):
    """This method cannot judge this model; its finding is *inconclusive*, never clean."""


class DivergedError(BanauditError):
    """The loss of a training is not finite any more."""


class TimeLimitReached(BanauditError):  # noqa: N818 - an event, not a mistake of the user's
    """The time that the user gave is spent."""


class UsageError(BanauditError):
    """Arguments that contradict each other or the machine."""
