"""The file tier of a sidefile: an unlinked file of fixed size in a directory of the user's choice."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from timezero.errors import TimezeroError, UsageError
from timezero.subsystem.stack import Identity, standing_on


def check_directory(directory: str, volumes: Mapping[str, Identity]) -> None:
    """Refuse a directory that stands on a served volume: saving a before-image there would wait for itself."""
    try:
        below = standing_on(directory)
    except OSError as error:
        raise UsageError(f"sidefile directory {directory}: {error.strerror}") from None
    for name, identity in volumes.items():
        if identity in below:
            raise UsageError(
                f"sidefile directory {directory}: it stands on volume {name}, which is served here; "
                "choose one on another device"
            )


def create(directory: str, size: int) -> int:
    """A descriptor of a new file of `size` bytes without a name, with its space allocated. Raises TimezeroError."""
    descriptor = -1
    try:
        descriptor = _unnamed(directory)
        os.posix_fallocate(descriptor, 0, size)
        return descriptor
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise TimezeroError(f"sidefile of {size} bytes in {directory}: {error.strerror}") from None


def _unnamed(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    descriptor, path = tempfile.mkstemp(prefix=".timezero-sidefile-", dir=directory)
    Path(path).unlink()
    return descriptor
