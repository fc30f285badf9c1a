"""Point-in-time backups of live volumes at device speed.

    import timezero

    result = timezero.backup("/backup/repo", ["disk1", "disk2"])      # volumes of a running `timezero serve`
    timezero.restore("/backup/repo", "latest", "disk1", "disk1.img")

Functions  backup, copy, restore, verify
Classes    Repository, Progress
Errors     TimezeroError and its kinds, each with the `exit_code` of the command line

Everything is imported when it is first used: start-up is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from timezero._late import late
from timezero._version import __version__

if TYPE_CHECKING:
    from timezero.errors import (
        DeadlineError,
        LockedError,
        NoRepositoryError,
        PartialError,
        PunctureError,
        TimezeroError,
        UsageError,
        VerificationError,
    )
    from timezero.jobs.backup import BackupResult, backup
    from timezero.jobs.copy import CopyResult, copy
    from timezero.jobs.options import FileOptions, MoverOptions, SessionOptions
    from timezero.jobs.progress import Progress
    from timezero.jobs.restore import RestoreResult, restore
    from timezero.jobs.verify import VerifyResult, verify
    from timezero.repository import Repository

__all__ = [
    "BackupResult",
    "CopyResult",
    "DeadlineError",
    "FileOptions",
    "LockedError",
    "MoverOptions",
    "NoRepositoryError",
    "PartialError",
    "Progress",
    "PunctureError",
    "Repository",
    "RestoreResult",
    "SessionOptions",
    "TimezeroError",
    "UsageError",
    "VerificationError",
    "VerifyResult",
    "__version__",
    "backup",
    "copy",
    "restore",
    "verify",
]

_ERRORS = [name for name in __all__ if name.endswith("Error")]
__getattr__ = late(
    __name__,
    {
        **dict.fromkeys(_ERRORS, "timezero.errors"),
        "BackupResult": "timezero.jobs.backup",
        "CopyResult": "timezero.jobs.copy",
        "FileOptions": "timezero.jobs.options",
        "MoverOptions": "timezero.jobs.options",
        "Progress": "timezero.jobs.progress",
        "Repository": "timezero.repository",
        "RestoreResult": "timezero.jobs.restore",
        "SessionOptions": "timezero.jobs.options",
        "VerifyResult": "timezero.jobs.verify",
        "backup": "timezero.jobs.backup",
        "copy": "timezero.jobs.copy",
        "restore": "timezero.jobs.restore",
        "verify": "timezero.jobs.verify",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
