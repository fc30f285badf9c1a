"""A file that has no name until it is whole and durable.

It is made without one (where the file system has no such thing, under a temporary one) in the directory it will be
in, and then named in one step: whoever looks sees the old file, or none, or the whole new one.

Errors: OSError as the system says it.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from timezero import _linux
from timezero.repository import names

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
        self._temporary = names.temporary_name()
        return os.open(self._temporary, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._directory)

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
            temporary = self._temporary = names.temporary_name()
            self._link(temporary)
        else:
            temporary = self._temporary
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
