"""Targets that are written where they are: block devices, and image files that a delta changes.

Until the job has ended well such a target is a mixture of what was there and what is to be. When the job fails or is
interrupted, that is said, and the first and last MiB are blanked, so that it does not look like either; unless nothing
was written: then it is as it was. One whose device does not answer is not blanked: who said so would wait for it first.

Errors: TimezeroError, LockedError.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from timezero._crash import crash_point
from timezero.errors import LockedError, TimezeroError
from timezero.jobs import devices
from timezero.jobs.targets import Target
from timezero.units import MIB, format_size

if TYPE_CHECKING:
    from timezero._native.mover import Sink

#: Direct writes need it of a file's size while it is written.
_ALIGN = 4096


class InPlace(Target):
    """What is open as `fd`, and written there. delta: only what differs; keep: nothing where the source is damaged."""

    def __init__(self, name: str, fd: int, size: int, *, delta: bool, keep: bool) -> None:
        self.name = name
        self._fd = fd
        self._size = size
        self._delta = delta
        self._keep = keep
        self._started = False

    def sink(self) -> Sink:
        from timezero._native.mover import Sink

        if self._delta:
            return Sink.delta(self._fd, self._size, keep=self._keep)
        return Sink.image(self._fd, self._size, fresh=False)

    def begin(self) -> None:
        self._started = True

    def spared(self) -> None:
        self._started = False

    def left(self, again: str) -> str | None:
        if not self._started:
            return None
        blanked = "is not blanked, for it does not answer" if self.is_silent else "is blanked at both ends"
        then = f"{again} goes on from here" if self._delta else "restore it again before it is used"
        return f"{self.name} now holds a mixture of old and new data and {blanked}: {then}"

    def publish(self, *, damaged: bool = False) -> None:
        crash_point("place.written")
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise TimezeroError(f"{self.name}: cannot be made durable: {error.strerror}") from error
        crash_point("place.synced")
        self._started = False

    def discard(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._started and not self.is_silent:
                self._blank(fd)
        finally:
            os.close(fd)

    def _blank(self, fd: int) -> None:
        # The job has failed and says so; what of a target takes no more writes cannot be blanked, but the rest can.
        for offset in {0, max(0, self._size - MIB)}:
            with suppress(OSError):
                os.pwrite(fd, bytes(min(MIB, self._size - offset)), offset)
        with suppress(OSError):
            os.fsync(fd)


def open_device(path: str, size: int, *, force: bool, delta: bool = False, keep: bool = False) -> InPlace:
    """A block device, of which nobody else is to be a user unless `force`. Raises TimezeroError."""
    device = os.stat(path).st_rdev
    try:
        fd = devices.open_exclusive(path, os.O_RDWR)
        if fd is None and not force:
            raise TimezeroError(
                f"{path}: {devices.user_of(device)}: free it first, or overwrite it all the same with --force"
            )
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC) if fd is None else fd
    except OSError as error:
        raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error
    room = os.lseek(fd, 0, os.SEEK_END)
    if room < size:
        os.close(fd)
        raise TimezeroError(
            f"{path}: too small: it has {room} bytes ({format_size(room)}), the data {size} ({format_size(size)})"
        )
    return InPlace(path, fd, size, delta=delta, keep=keep)


def open_file(path: str, size: int, *, keep: bool = False) -> InPlace:
    """An image file that is there, for a delta; its size is right at the end. Raises TimezeroError, LockedError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise TimezeroError(f"{path}: is no file any more")
        lock(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return _ImageInPlace(path, fd, size, delta=True, keep=keep)


class _ImageInPlace(InPlace):
    #: Its size, and what that is for now.
    _sizes: tuple[int, int] | None = None

    def sink(self) -> Sink:
        try:
            size = os.fstat(self._fd).st_size
            self._sizes = size, -(-size // _ALIGN) * _ALIGN
            align(self._fd)
            crash_point("place.aligned")
        except OSError as error:
            raise TimezeroError(f"{self.name}: cannot be written: {error.strerror}") from error
        return super().sink()

    def spared(self) -> None:
        # One that has all of the data is cut off where that ends; what was added to a silent one stays there.
        sizes = self._sizes
        if sizes is None or (sizes[0] == sizes[1] if self.is_silent else os.fstat(self._fd).st_size in sizes):
            super().spared()

    def publish(self, *, damaged: bool = False) -> None:
        super().publish(damaged=damaged)
        self._sizes = None

    def discard(self) -> None:
        sizes, self._sizes = self._sizes, None
        if sizes is not None and not self._started and not self.is_silent and self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, sizes[0])
        super().discard()


def lock(fd: int, path: str) -> None:
    """Keep other timezeros away from a file until it is closed. Raises LockedError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(f"{path}: another timezero writes it: try again when it has ended") from None


def align(fd: int) -> None:
    """Make a file as long as direct I/O wants it, for as long as it is written: the end is cut off when it is whole."""
    ragged = -os.fstat(fd).st_size % _ALIGN
    if ragged:
        os.ftruncate(fd, os.fstat(fd).st_size + ragged)
