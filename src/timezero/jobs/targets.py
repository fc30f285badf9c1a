"""Where an image goes: a file, a block device, or a stream.

A file is written without a name (where the file system has no such thing, under a temporary one) and named when it is
whole and durable: nothing half-written ever bears its name. A device is written in place; when that fails, its first
and last MiB are blanked, so that it does not look like what it should have become. Of a stream only the exit code
tells.

Errors: TimezeroError, UsageError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from timezero._linux.stack import Identity, identity_of, standing_on
from timezero.errors import TimezeroError, UsageError
from timezero.jobs import devices
from timezero.jobs.newfile import NewFile
from timezero.repository import durable
from timezero.units import MIB, format_size

if TYPE_CHECKING:
    from timezero._native.mover import Sink

STREAM = "-"


class Target:
    """An image being written. A context manager: leaving it before `publish` discards it."""

    #: What it is called in errors and reports.
    name: str

    def sink(self) -> Sink:
        """The mover's sink for it."""
        raise NotImplementedError

    def begin(self) -> None:
        """From here on it is written to."""

    def publish(self) -> None:
        """The image is whole and durable: let it be seen."""

    def discard(self) -> None:
        """Nothing may look whole. Safe to repeat, and after publish it does nothing."""

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class FileTarget(Target):
    """An image file, new or (with `force`) in the place of another one."""

    def __init__(self, path: str, size: int, *, force: bool) -> None:
        self.name = path
        self._size = size
        self._replace = force
        self._file: NewFile | None = None
        self._parent = -1
        # With a link as target the file it points to is replaced, not the link.
        self._path = os.path.realpath(path) if force else os.path.abspath(path)
        self._directory = os.path.dirname(self._path)
        try:
            self._parent = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            # A volume's content is for its owner, whatever the umask says; a file that is replaced keeps its mode.
            self._file = NewFile(self._parent, os.path.basename(self._path))
            if force and os.path.exists(self._path):
                os.fchmod(self._file.fd, stat.S_IMODE(os.stat(self._path).st_mode))
        except OSError as error:
            self.discard()
            raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error

    @property
    def fd(self) -> int:
        """The file, until it is discarded."""
        assert self._file is not None
        return self._file.fd

    def sink(self) -> Sink:
        from timezero._native.mover import Sink

        return Sink.image(self.fd, self._size, fresh=True)

    def publish(self) -> None:
        try:
            assert self._file is not None
            if os.fstat(self.fd).st_size != self._size:
                raise TimezeroError(f"{self.name}: somebody else changed it while it was written")
            os.fsync(self.fd)
            self._file.publish(replace=self._replace)
        except FileExistsError:
            raise TimezeroError(f"{self.name}: was made by somebody else meanwhile: it is left alone") from None
        except OSError as error:
            raise TimezeroError(f"{self.name}: cannot be made durable: {error.strerror}") from error
        try:
            durable.sync_directory(self._directory)
        except OSError as error:
            raise TimezeroError(
                f"{self.name}: is there and whole, but its name cannot be made durable: {error.strerror}"
            ) from error

    def discard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        parent, self._parent = self._parent, -1
        if parent >= 0:
            os.close(parent)


class DeviceTarget(Target):
    """A block device, written in place."""

    def __init__(self, path: str, size: int, *, force: bool) -> None:
        self.name = path
        self._size = size
        self._started = False
        device = os.stat(path).st_rdev
        try:
            fd = devices.open_exclusive(path, os.O_RDWR)
            if fd is None and not force:
                raise TimezeroError(
                    f"{path}: {devices.user_of(device)}: free it first, or overwrite it all the same with --force"
                )
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC) if fd is None else fd
        except OSError as error:
            raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error
        room = os.lseek(self._fd, 0, os.SEEK_END)
        if room < size:
            os.close(self._fd)
            raise TimezeroError(
                f"{path}: too small: it has {room} bytes ({format_size(room)}), the data {size} ({format_size(size)})"
            )

    def sink(self) -> Sink:
        from timezero._native.mover import Sink

        return Sink.image(self._fd, self._size, fresh=False)

    def begin(self) -> None:
        self._started = True

    def publish(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise TimezeroError(f"{self.name}: cannot be made durable: {error.strerror}") from error
        self._started = False

    def discard(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._started:
                self._blank(fd)
        finally:
            os.close(fd)

    def _blank(self, fd: int) -> None:
        # The job has failed and says so; what of a device takes no more writes cannot be blanked, but the rest can.
        for offset in {0, max(0, self._size - MIB)}:
            with suppress(OSError):
                os.pwrite(fd, bytes(min(MIB, self._size - offset)), offset)
        with suppress(OSError):
            os.fsync(fd)


class StreamTarget(Target):
    """Standard output, in order."""

    name = "standard output"

    def __init__(self) -> None:
        if os.isatty(1):
            raise UsageError("the image would go to a terminal: redirect standard output or name a file")

    def sink(self) -> Sink:
        from timezero._native.mover import Sink

        return Sink.stream(1)


def check_apart(path: str, what: str, sources: Iterable[tuple[str, str, Identity]]) -> None:
    """Refuse a target or repository at `path` that is, or stands on, or lies under, what is read.

    sources: (name, path, identity). Raises UsageError.
    """
    under_target = _standing_on(_nearest(path))
    target = identity_of(os.stat(path)) if os.path.exists(path) else None
    for name, source_path, source in sources:
        if source == target:
            raise UsageError(f"{path}: {what} is the same as the source {name}")
        if source in under_target:
            raise UsageError(f"{path}: {what} stands on the source {name}: choose another place")
        if target is not None and target in _standing_on(source_path):
            raise UsageError(f"{path}: the source {name} stands on {what}: choose another place")


def _standing_on(path: str) -> set[Identity]:
    try:
        return standing_on(path)
    except OSError:
        return set()  # a volume of a subsystem that sees other files than we do: it checks its own


def _nearest(path: str) -> str:
    path = os.path.abspath(path)
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    return path


def check_target(path: str, *, force: bool) -> None:
    """Refuse a target that can never be written, before anything is prepared. Raises TimezeroError, UsageError."""
    if path == STREAM:
        return
    if not path:
        raise UsageError("the target has no name")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            raise TimezeroError(f"{path}: cannot be written: there is no directory {parent}") from None
        if os.path.lexists(path):
            raise TimezeroError(f"{path}: is a link to nothing: remove it or name another target") from None
        return
    except OSError as error:
        raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error
    if stat.S_ISREG(mode) and not force:
        raise TimezeroError(f"{path}: exists already: replace it with --force, or name another target")
    if stat.S_ISDIR(mode):
        raise TimezeroError(f"{path}: is a directory: name the image file in it")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise TimezeroError(f"{path}: neither a file nor a block device: write to `-` and redirect standard output")


def open_target(path: str, size: int, *, force: bool) -> Target:
    """Open a target for `size` bytes. Raises TimezeroError, UsageError."""
    check_target(path, force=force)
    if path == STREAM:
        return StreamTarget()
    if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
        return DeviceTarget(path, size, force=force)
    return FileTarget(path, size, force=force)
