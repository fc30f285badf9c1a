"""The file tier of a sidefile: an unlinked file in a directory of the user's choice."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from timezero._linux.stack import Identity, standing_on
from timezero.errors import UsageError


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


def create(directory: str) -> int:
    """A descriptor of a new file without a name; the core gives it its size. Raises OSError."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # a filesystem without O_TMPFILE
            raise
    descriptor, path = tempfile.mkstemp(prefix=".timezero-sidefile-", dir=directory)
    Path(path).unlink()
    return descriptor
