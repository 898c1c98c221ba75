"""The errors that a user can mend, and the exit code each one ends a command with.

Everything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class GristmillError(Exception):
    """What is wrong, where, and how to mend it, in one line. Ends a command with exit code 1."""

    exit_code = 1


class UsageError(GristmillError):
    """Wrong flags, an unknown configuration key, a value of the wrong type: exit code 2."""

    exit_code = 2


class DataError(GristmillError):
    """A check of data failed: a hash, a manifest, a calibration gate. Exit code 3."""

    exit_code = 3


class WriteError(GristmillError, OSError):
    """A file cannot be written: the disk is full, a quota is used up, or it may not be. Exit code 1."""


class PartialError(GristmillError):
    """More input was quarantined than the run allows; what was done is kept. Exit code 4."""

    exit_code = 4
