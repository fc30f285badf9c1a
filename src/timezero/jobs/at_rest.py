"""A source that no one serves: a file or block device that must not change while it is read.

A file is held by a read lease, which the kernel gives only while nobody has it open for writing, and which it breaks,
keeping the writer waiting, when somebody comes. A device is claimed exclusively, or mounted read-only throughout; the
kernel counts what is written to it. At the end size, change time and count must be what they were. With `fuzzy` a
doubt is recorded instead, and the method is "fuzzy".

Errors: TimezeroError. Threads: one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from contextlib import suppress

from timezero._linux.stack import identity_of
from timezero.errors import TimezeroError
from timezero.jobs import devices


class AtRest:
    """A source at rest, guarded from construction to close. A context manager."""

    def __init__(self, path: str, *, fuzzy: bool = False) -> None:
        self.path = path
        self.fuzzy = fuzzy
        self.doubts: list[str] = []
        self._leased = False
        self.fd = self._open()
        try:
            status = os.fstat(self.fd)
            self.identity = identity_of(status)
            self._is_device = stat.S_ISBLK(status.st_mode)
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
            if not self._is_device:
                self._take_lease()
            self._before = self._look()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        try:
            # Not blocking: neither on a FIFO, nor on a file whose lease somebody holds.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise TimezeroError(f"{self.path}: cannot be read: {error.strerror}") from error
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        if not stat.S_ISBLK(mode):
            os.close(fd)
            raise TimezeroError(f"{self.path}: neither a file nor a block device")
        try:
            return self._claim(os.fstat(fd).st_rdev)
        finally:
            os.close(fd)

    def _claim(self, device: int) -> int:
        try:
            fd = devices.open_exclusive(self.path, os.O_RDONLY)
            if fd is not None:
                return fd
            if not devices.mounted_read_only(device):
                self._doubt(devices.user_of(device))
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TimezeroError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _take_lease(self) -> None:
        try:
            # The default signal of a lease break ends the process; this one is ignored by default, and check() looks
            # itself.
            fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            self._leased = True
        except BlockingIOError:
            self._doubt("somebody has it open for writing")
        except PermissionError:
            self._doubt("it belongs to another user, so it cannot be held unchanged")
        except OSError as error:
            self._doubt(f"this file system does not hold it unchanged ({error.strerror})")

    def _doubt(self, doubt: str) -> None:
        if not self.fuzzy:
            raise TimezeroError(
                f"{self.path}: {doubt}: serve it with `timezero serve`, or copy it all the same with --fuzzy"
            )
        if doubt not in self.doubts:
            self.doubts.append(doubt)

    def _look(self) -> object:
        status = os.fstat(self.fd)
        if self._is_device:
            return os.lseek(self.fd, 0, os.SEEK_END), devices.written_sectors(status.st_rdev)
        return status.st_size, status.st_ctime_ns, status.st_mtime_ns

    @property
    def method_requested(self) -> str:
        """ "fuzzy" when a changing source was allowed, else "at-rest"."""
        return "fuzzy" if self.fuzzy else "at-rest"

    @property
    def method_used(self) -> str:
        """ "fuzzy" when the source may have changed, else "at-rest"."""
        return "fuzzy" if self.doubts else "at-rest"

    def check(self) -> None:
        """Look whether somebody wants to write. To be called several times a second: he waits meanwhile.

        Raises TimezeroError, unless fuzzy.
        """
        if self._leased and fcntl.fcntl(self.fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            self._release_lease()
            self._doubt("somebody opened it for writing while it was read")

    def finish(self) -> None:
        """The last look, after the last read. Raises TimezeroError when the source changed, unless fuzzy."""
        self.check()
        if self._look() != self._before:
            self._doubt("it changed while it was read")

    def _release_lease(self) -> None:
        if self._leased:
            self._leased = False
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def close(self) -> None:
        """Let everybody write again. Safe to repeat."""
        if self.fd >= 0:
            fd = self.fd
            with suppress(OSError):  # of a device that is gone: nothing was written through it
                self._release_lease()
            self.fd = -1
            with suppress(OSError):
                os.close(fd)

    def __enter__(self) -> AtRest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
