"""Errors with stable exit codes. Every error says what, where and what to do, in one line."""

from __future__ import annotations


class TimezeroError(Exception):
    """Base of all errors that timezero raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(TimezeroError):
    """The request itself makes no sense: a bad option, name, size or configuration."""

    exit_code = 2


class PartialError(TimezeroError):
    """Some datasets failed, others were committed."""

    exit_code = 3


class DeadlineError(TimezeroError):
    """The suspension deadline passed; the application was resumed, there is no T0."""

    exit_code = 4


class PunctureError(TimezeroError):
    """The session was punctured after T0: T0 is lost, nothing was committed, the application was not harmed."""

    exit_code = 5


class VerificationError(TimezeroError):
    """Stored data does not match its digest, or a recovery point is not whole."""

    exit_code = 6


class NoRepositoryError(TimezeroError):
    """There is no repository where one was named."""

    exit_code = 10


class LockedError(TimezeroError):
    """Somebody else holds the repository, the recovery point or the volume."""

    exit_code = 11
