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
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from timezero import _linux
from timezero._crash import crash_point
from timezero.repository import names

_T = TypeVar("_T")
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class NewFile:
    """A file to be `name` in the directory `directory` (a descriptor that its owner keeps open).

    Readable and writable by its owner alone, until somebody says otherwise. fd: it, for writing.
    """

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self._name = name
        self._temporary: str | None = None
        self.fd = -1
        try:
            self.fd = self._create()
            with suppress(OSError):  # file systems without locks have no sweeping either
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
        return self._under_temporary_name(
            lambda name: os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._directory)
        )

    def _under_temporary_name(self, make: Callable[[str], _T]) -> _T:
        name = self._free_name()
        try:
            made = make(name)
        except FileExistsError:  # somebody who writes the same file was quicker
            name = names.temporary_name()
            made = make(name)
        self._temporary = name
        return made

    def _free_name(self) -> str:
        """A temporary name: this file's own, swept, unless somebody writes it now."""
        name = f"{names.TEMPORARY_PREFIX}{zlib.crc32(os.fsencode(self._name)):08x}.tmp"
        try:
            left = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return name
        except OSError:
            return names.temporary_name()
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(left), os.stat(name, dir_fd=self._directory, follow_symlinks=False)):
                os.unlink(name, dir_fd=self._directory)
            return name
        except OSError:  # locked: a live one's
            return names.temporary_name()
        finally:
            os.close(left)

    @property
    def unnamed(self) -> bool:
        """Had the file system a file without a name?"""
        return self._temporary is None

    def publish(self, *, replace: bool) -> None:
        """Give it its name; the directory is the caller's to sync. Raises FileExistsError, unless `replace`."""
        if not replace:
            self._name_new(self._name)
            return
        if self._temporary is None:
            # There is no link(2) that replaces: the way to a rename is a name.
            self._under_temporary_name(self._link)
        temporary = self._temporary
        assert temporary is not None
        crash_point("target.linked")
        os.rename(temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
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
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._directory)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
