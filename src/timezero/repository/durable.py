"""Making files durable and publishing them: every name appears whole, once, or not at all.

Errors: OSError as the system says it; one of fsync is final and is never retried, because the kernel may
have dropped the data it could not write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from timezero._crash import crash_point
from timezero.repository import names

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def naming(path: str) -> Iterator[None]:
    """An OSError about a descriptor gets the name of what it is open on."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, path) from error
        raise


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(path):
            os.fsync(fd)
    finally:
        os.close(fd)


def write_new(path: str, *pieces: bytes | memoryview, mode: int = 0o600) -> None:
    """Create `path` exclusively with the given content, durable; its directory is the caller's to sync."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with naming(path):
            for piece in pieces:
                rest = memoryview(piece).cast("B")
                while rest:
                    rest = rest[os.write(fd, rest) :]
            crash_point("file.written")
            os.fsync(fd)
    finally:
        os.close(fd)


def move_new(source: str, target: str) -> None:
    """Give `source` the name `target` in one step. Raises FileExistsError: nothing is ever replaced."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        from timezero import _linux

        _linux.rename_noreplace(source, target)
    else:
        crash_point("name.linked")
        os.unlink(source)


def publish(directory: str, name: str, content: bytes) -> None:
    """Make `content` appear as `directory`/`name`, whole and durable. Raises FileExistsError."""
    temporary = os.path.join(directory, names.temporary_name())
    try:
        write_new(temporary, content)
        crash_point("document.synced")
        move_new(temporary, os.path.join(directory, name))
        crash_point("document.named")
    finally:
        remove(temporary)
    sync_directory(directory)


def remove(path: str) -> None:
    """Remove a file; that it is not there (any more) is no error."""
    with suppress(FileNotFoundError):
        os.unlink(path)
