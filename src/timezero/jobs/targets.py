"""Where an image goes: a file, a block device, or a stream.

A file is written without a name (where the file system has no such thing, under a temporary one) and named when it is
whole and durable: nothing half-written ever bears its name, and what was salvaged of damaged data is called so. With
`resume` it is written under a name of ours beside its place, where it stays until it is whole: what is there already is
told by its digests, so no record of it has to be kept, or believed. Devices, and with `delta` files as well, are
written in place (timezero.jobs.in_place). Of a stream only the exit code tells.

Errors: TimezeroError, UsageError.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from timezero._crash import crash_point
from timezero._linux.stack import Identity, identity_of, standing_on
from timezero.errors import LockedError, TimezeroError, UsageError, VerificationError
from timezero.jobs.newfile import NewFile, PartialFile
from timezero.repository import durable

if TYPE_CHECKING:
    from timezero._native.mover import Sink

STREAM = "-"
#: What is added to the name of a file when it is published though it is not whole: the plain name means that it is.
DAMAGED_SUFFIX = ".damaged"


class Target(ABC):
    """An image being written. A context manager: leaving it before `publish` discards it."""

    #: What it is called in errors and reports.
    name: str
    is_silent = False

    @abstractmethod
    def sink(self) -> Sink:
        """The mover's sink for it."""

    def begin(self) -> None:  # noqa: B027 (most have nothing to do)
        """From here on it is written to."""

    def spared(self) -> None:  # noqa: B027
        """It is not: nothing of it was written."""

    def silent(self) -> None:
        """Its device does not answer: whoever asks it for anything more waits for it."""
        self.is_silent = True

    def left(self, again: str) -> str | None:
        """What is left here, in words, of a job that does not come to its end; None: nothing that was not before.

        again: what would go on with it.
        """
        return None

    @abstractmethod
    def publish(self, *, damaged: bool = False) -> None:
        """The image is durable, and whole unless it is `damaged`: let it be seen. `name` is then what it is called."""

    def discard(self) -> None:  # noqa: B027
        """Nothing may look whole. Safe to repeat, and after publish it does nothing."""

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class FileTarget(Target):
    """An image file, new or (with `force`) in the place of another one.

    resume: one that is gone on with; owner: who will own it, when that is not us.
    """

    def __init__(self, path: str, size: int, *, force: bool, resume: bool = False, owner: int | None = None) -> None:
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
            name = os.path.basename(self._path)
            self._file = PartialFile(self._parent, name, owner) if resume else NewFile(self._parent, name)
            if force and os.path.exists(self._path):
                os.fchmod(self._file.fd, stat.S_IMODE(os.stat(self._path).st_mode))
        except OSError as error:
            self.discard()
            raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error
        except LockedError:
            self.discard()
            raise

    @property
    def fd(self) -> int:
        """The file, until it is discarded."""
        assert self._file is not None
        return self._file.fd

    def sink(self) -> Sink:
        from timezero._native.mover import Sink

        if isinstance(self._file, PartialFile) and self._file.resumed:
            from timezero.jobs.in_place import align

            align(self.fd)
            return Sink.delta(self.fd, self._size)
        return Sink.image(self.fd, self._size, fresh=True)

    def left(self, again: str) -> str | None:
        if not isinstance(self._file, PartialFile) or not self._file.stays:
            return None
        partial = os.path.join(self._directory, self._file.partial)
        return f"{partial} keeps what is there of it: {again} goes on from there"

    def publish(self, *, damaged: bool = False) -> None:
        try:
            assert self._file is not None
            if os.fstat(self.fd).st_size != self._size:
                raise TimezeroError(f"{self.name}: somebody else changed it while it was written")
            crash_point("target.written")
            os.fsync(self.fd)
            crash_point("target.synced")
            if damaged:
                self._file.name = os.path.basename(self._path) + DAMAGED_SUFFIX
                self.name = (self._path if os.path.islink(self.name) else self.name) + DAMAGED_SUFFIX
            self._file.publish(replace=self._replace)
            crash_point("target.named")
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


class StreamTarget(Target):
    """Standard output, in order."""

    name = "standard output"

    def __init__(self) -> None:
        if os.isatty(1):
            raise UsageError("the image would go to a terminal: redirect standard output or name a file")

    def sink(self) -> Sink:
        from timezero._native.mover import Sink

        return Sink.stream(1)

    def publish(self, *, damaged: bool = False) -> None:
        """Whoever reads it has had it already."""


@contextmanager
def telling_left(*written: Target) -> Iterator[None]:
    """Adds to what ends a job before its end what it leaves behind."""
    try:
        yield
    except (TimezeroError, KeyboardInterrupt) as stop:
        # What is damaged stays so.
        again = "--salvage" if isinstance(stop, VerificationError) else "the same command"
        left = [(text, target.is_silent) for target in written if (text := target.left(again)) is not None]
        if left:
            alike = [text for text, silent in left if not silent]
            more = [f"and {len(alike) - 1} more likewise"] if len(alike) > 1 else []
            silent = [text for text, silent in left if silent]
            stop.args = ("; ".join([str(stop) or "interrupted", *silent, *alike[:1], *more]),)
        raise


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


def check_target(path: str, *, force: bool, salvage: bool = False) -> None:
    """Refuse a target that can never be written, before anything is prepared. Raises TimezeroError, UsageError."""
    if path == STREAM:
        return
    if salvage and not force and os.path.lexists(path + DAMAGED_SUFFIX):
        raise TimezeroError(f"{path}{DAMAGED_SUFFIX}: exists already: replace it with --force, or name another target")
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


def open_target(
    path: str,
    size: int,
    *,
    force: bool,
    delta: bool = False,
    resume: bool = False,
    keep: bool = False,
    owner: int | None = None,
) -> Target:
    """Open a target for `size` bytes.

    delta: write only what differs from what is there. resume: go on with what an earlier attempt left. keep: with
    `delta`, leave what is there where the source is damaged. owner: who a new file will belong to. Raises
    TimezeroError, UsageError, LockedError.
    """
    check_target(path, force=force)
    if path == STREAM:
        if delta or resume:
            raise UsageError("standard output cannot be looked at first: leave out --resume and --delta")
        return StreamTarget()
    from timezero.jobs import in_place

    if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
        return in_place.open_device(path, size, force=force, delta=delta or resume, keep=keep and delta)
    if delta and os.path.exists(path):
        return in_place.open_file(path, size, keep=keep)
    return FileTarget(path, size, force=force, resume=resume, owner=owner)
