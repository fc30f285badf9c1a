"""A file that has no name until it is whole and durable.

It is made without one (where the file system has no such thing, under a temporary one) in the directory it will be
in, and then named in one step: whoever looks sees the old file, or none, or the whole new one.

To replace a file takes a temporary name for a moment. It is made from the file's own, and its file is locked by who
writes it: so when he is killed in that moment, the next one who writes the same file finds what he left, sees that he
is gone, and removes it.

Errors: OSError as the system says it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from timezero import _linux
from timezero._crash import crash_point
from timezero.errors import LockedError
from timezero.repository import names

_T = TypeVar("_T")
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def _lock(fd: int) -> bool:
    """Show that it is a live one's; False when somebody has it. File systems without locks have no sweeping either."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


class NewFile:
    """A file to be `name` in the directory `directory` (a descriptor that its owner keeps open).

    Readable and writable by its owner alone, until somebody says otherwise. fd: it, for writing. The name may be
    changed until it is published.
    """

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self.name = name
        self._temporary: str | None = None
        self.fd = -1
        try:
            self.fd = self._create()
        except BaseException:
            self.close()
            raise

    def _create(self) -> int:
        try:
            fd = os.open(".", os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o600, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
            return self._under_temporary_name(self._create_named)
        _lock(fd)
        return fd

    def _create_named(self, name: str) -> int:
        """With a name. Until it is locked it looks like a dead one's: FileExistsError when somebody sweeps it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._directory)
        try:
            if not _lock(fd) or not self._is_named(name, os.fstat(fd)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _under_temporary_name(self, make: Callable[[str], _T]) -> _T:
        # Known before it is there: an interrupt that comes at once must not leave it behind.
        self._temporary = self._free_name()
        try:
            return make(self._temporary)
        except FileExistsError:  # somebody who writes the same file was quicker
            self._temporary = names.temporary_name()
            return make(self._temporary)

    def _free_name(self) -> str:
        """A temporary name: this file's own, swept, unless somebody writes it now."""
        name = f"{names.TEMPORARY_PREFIX}{zlib.crc32(os.fsencode(self.name)):08x}.tmp"
        try:
            # For writing: a lock that keeps everybody else away takes that where locks are the server's (NFS).
            left = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return name
        except OSError:
            return names.temporary_name()
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_named(name, os.fstat(left)):
                os.unlink(name, dir_fd=self._directory)
            return name
        except OSError:  # locked: a live one's
            return names.temporary_name()
        finally:
            os.close(left)

    def _is_named(self, name: str, found: os.stat_result) -> bool:
        try:
            named = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, found)

    def _check_named(self, name: str) -> None:
        """Whatever has its temporary name is what gets the other one: is that still this file? Else ENOENT."""
        if not self._is_named(name, os.fstat(self.fd)):
            raise FileNotFoundError(errno.ENOENT, "somebody removed it while it was written", name)

    @property
    def unnamed(self) -> bool:
        """Had the file system a file without a name?"""
        return self._temporary is None

    def publish(self, *, replace: bool) -> None:
        """Give it its name; the directory is the caller's to sync. Raises FileExistsError, unless `replace`."""
        if not replace:
            self._name_new(self.name)
            return
        if self._temporary is None:
            # There is no link(2) that replaces: the way to a rename is a name.
            self._under_temporary_name(self._link)
        temporary = self._temporary
        assert temporary is not None
        crash_point("target.linked")
        self._check_named(temporary)
        os.rename(temporary, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = None

    def _link(self, name: str) -> None:
        # Python follows the link to the file only when a descriptor is given, though an absolute path needs none.
        os.link(
            f"/proc/self/fd/{self.fd}",
            name,
            src_dir_fd=self._directory,
            dst_dir_fd=self._directory,
            follow_symlinks=True,
        )

    def _name_new(self, name: str) -> None:
        if self._temporary is None:
            self._link(name)
            return
        self._check_named(self._temporary)
        try:
            os.link(self._temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            there = f"/proc/self/fd/{self._directory}"
            _linux.rename_noreplace(f"{there}/{self._temporary}", f"{there}/{name}")
        else:
            os.unlink(self._temporary, dir_fd=self._directory)
        self._temporary = None

    def close(self) -> None:
        """Let go of it; without a name nothing of it stays. Safe to repeat."""
        temporary, self._temporary = self._temporary, None
        fd, self.fd = self.fd, -1
        try:
            # Without a descriptor it was interrupted while it was made.
            if temporary is not None and (fd < 0 or self._is_named(temporary, os.fstat(fd))):
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._directory)
        finally:
            if fd >= 0:
                os.close(fd)


class PartialFile(NewFile):
    """A new file that stays, under a name of its own, when it is not published; the next one goes on with it.

    resumed: something was there already. partial: its name until then. Nobody else writes it meanwhile: it is locked.
    owner: who will own it, which somebody killed before the last step may have seen to already; it is ours again until
    then. To let that owner have made it gives him nothing: what it becomes is his to change.
    Raises LockedError; FileExistsError when something else has its name.
    """

    def __init__(self, directory: int, name: str, owner: int | None = None) -> None:
        self.partial = names.partial_name(name)
        self.resumed = False
        self._owner = owner
        super().__init__(directory, name)

    def _create(self) -> int:
        while True:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(fd)
                expected = (os.geteuid(), self._owner)
                if not stat.S_ISREG(found.st_mode) or found.st_uid not in expected or found.st_nlink > 1:
                    # With two names it is what somebody has published: to go on would change that.
                    raise FileExistsError(errno.EEXIST, f"{self.partial} is in the way: remove it")
                if self._is_named(self.partial, found):
                    if found.st_uid != os.geteuid():
                        os.fchown(fd, os.geteuid(), os.getegid())
                        os.fchmod(fd, 0o600)
                    self._temporary = self.partial
                    self.resumed = found.st_size > 0
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise LockedError(f"{self.partial}: another timezero writes it: try again when it has ended") from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its maker has published it, or thrown it away, in this moment

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(self.partial, flags, 0o600, dir_fd=self._directory)

    @property
    def stays(self) -> bool:
        """Would something stay under its name, if it were closed now?"""
        return self.fd >= 0 and self._temporary is not None and os.fstat(self.fd).st_blocks > 0

    def close(self) -> None:
        """Let go of it; what has no content yet goes. Safe to repeat."""
        if self.stays:
            self._temporary = None
        super().close()
