"""A directory and what is below it, for names that are not trusted.

Every directory on the way is opened in the one above it, and never a link followed: whatever somebody puts there
meanwhile, nothing is made outside of the tree. Only the root itself may be reached through links: its user named it.

Errors: OSError as the system says it, with the path as the user would write it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from timezero import _linux

#: A directory below the root: its name's components.
Parts = tuple[str, ...]

#: Calls of fsync for which one syncfs is a bargain, though it waits for what others wrote as well.
SYNC_EACH_MAX = 8


def syncfs_tells() -> bool:
    """Does syncfs(2) report what could not be written? It does since Linux 5.8."""
    release = os.uname().release.split(".")
    try:
        return (int(release[0]), int(release[1])) >= (5, 8)
    except (ValueError, IndexError):
        return False


class Tree:
    """Descriptors of directories below `root`. A context manager; `forget` closes those that are open."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[Parts, int] = {}
        self._unsynced: set[Parts] = set()

    def path(self, parts: Parts) -> str:
        """As the user would write it."""
        return os.path.join(self.root, *parts)

    def directory(self, parts: Parts) -> int:
        """A descriptor of the directory, which is made when it is missing; good until `forget`.

        A directory that is made is like the one above it, but nobody else may write to it.
        """
        fd = self._open.get(parts)
        if fd is None:
            fd = self._open[parts] = self._walk(parts, make=True)
        return fd

    def changed(self, parts: Parts) -> None:
        """A name in that directory is new: `sync` has to make it durable."""
        self._unsynced.add(parts)

    def sync(self) -> None:
        """Make all names durable that are new. An error is final."""
        unsynced, self._unsynced = sorted(self._unsynced), set()
        whole = len(unsynced) > SYNC_EACH_MAX and syncfs_tells()
        synced: set[int] = set()
        for parts in unsynced:
            fd = self._open.get(parts)
            own = fd is None
            fd = self._walk(parts, make=False) if fd is None else fd
            try:
                device = os.fstat(fd).st_dev
                if not whole:
                    os.fsync(fd)
                elif device not in synced:
                    _linux.syncfs(fd)
                    synced.add(device)
            finally:
                if own:
                    os.close(fd)

    def _walk(self, parts: Parts, *, make: bool) -> int:
        fd = os.dup(self._fd)
        for depth, part in enumerate(parts, 1):
            # On the way it is enough to pass; only the last one must be readable, for its fsync.
            kind = os.O_RDONLY if depth == len(parts) else os.O_PATH
            try:
                below = self._enter(fd, part, kind, parts[: depth - 1] if make else None)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path(parts[:depth])) from error
            finally:
                os.close(fd)
            fd = below
        return fd

    def _enter(self, fd: int, part: str, kind: int, above: Parts | None) -> int:
        """The directory `part` of `fd`, made when it is missing and `above`, the parts of `fd`, is given."""
        flags = kind | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(part, flags, dir_fd=fd)
        except FileNotFoundError:
            if above is None:
                raise
        with suppress(FileExistsError):
            os.mkdir(part, 0o700, dir_fd=fd)
            self._unsynced.add(above)
            made = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                _take_after(made, os.stat(fd))
            finally:
                os.close(made)
        return os.open(part, flags, dir_fd=fd)

    def forget(self) -> None:
        """Close all directories but the root."""
        opened, self._open = self._open, {}
        for fd in opened.values():
            os.close(fd)

    def close(self) -> None:
        """Close everything. Safe to repeat."""
        self.forget()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _take_after(directory: int, above: os.stat_result) -> None:
    """Owner and mode of the directory above, as far as they may be given, without what lets others write."""
    with suppress(PermissionError):
        os.fchown(directory, above.st_uid, above.st_gid)
    os.fchmod(directory, above.st_mode & 0o755 | 0o700)
