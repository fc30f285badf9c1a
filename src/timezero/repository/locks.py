"""Locks between processes: flock on files of the repository. The kernel gives them back when their holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from timezero.errors import LockedError

_POLL_S = 0.05


class FileLock:
    """A lock on one file, held until close.

    Raises LockedError, with `what` as its text, when somebody else has it for longer than `patience` seconds.
    """

    def __init__(self, path: str, *, shared: bool, what: str, patience: float = 0, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY if shared else os.O_RDWR
        self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._acquire(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, what, time.monotonic() + patience)
        except BaseException:
            self.close()
            raise

    def _acquire(self, kind: int, what: str, until: float) -> None:
        while True:
            try:
                return fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() >= until:
                    raise LockedError(what) from None
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Give the lock back. Safe to repeat."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
