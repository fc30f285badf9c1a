"""Where the pieces of an attached volume are: one directory a volume of a server, and a lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from timezero.errors import LockedError, TimezeroError
from timezero.places import runtime_directory

_LOCK_WAIT_S = 60.0


class Place:
    """The place of a volume, by its name and its server's control socket. A context manager: one job at a time.

    /run/timezero/attach/NAME-KEY.d/NAME   the volume as a file, on a file system of nbdfuse's
    /run/timezero/attach/NAME-KEY.nbd      the volume's kernel NBD device
    """

    def __init__(self, name: str, control: str) -> None:
        self.name = name
        key = hashlib.sha256(os.fsencode(control)).hexdigest()[:12]
        self.parent = Path(runtime_directory()) / "attach"
        self._stem = f"{name}-{key}"
        self.mount_point = self.parent / f"{self._stem}.d"
        self.file = self.mount_point / name
        self._lock = -1

    def beside(self, suffix: str) -> Path:
        """A file of this volume's."""
        return self.parent / f"{self._stem}.{suffix}"

    def __enter__(self) -> Self:
        self._make_parent()
        end = time.monotonic() + _LOCK_WAIT_S
        while not self._try_lock():
            if time.monotonic() > end:
                raise LockedError(f"{self.name}: is being attached or detached by somebody else: try again")
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Whoever waits for this file finds, once he has got it, that it is the lock no more.
        with contextlib.suppress(OSError):
            self.beside("lock").unlink()
        os.close(self._lock)

    def _try_lock(self) -> bool:
        path = self.beside("lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                self._lock, lock = lock, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if lock >= 0:
                os.close(lock)
        return False

    def _make_parent(self) -> None:
        try:
            for directory in (self.parent.parent, self.parent):
                directory.mkdir(mode=0o700, exist_ok=True)
            found = self.parent.lstat()
        except OSError as error:
            raise TimezeroError(f"{self.parent}: cannot be made: {error.strerror}: attach needs root") from None
        # Whoever can write here could give us a file of his own for a disk.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise TimezeroError(f"{self.parent}: is not a directory that only its owner can write to: remove it")
