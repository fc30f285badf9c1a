"""System calls that Python has no function for, over the cffi module."""

from __future__ import annotations

import os
from typing import NamedTuple

from timezero._linux._cffi import ffi, lib

_FIEMAP_BATCH = 512
_FIEMAP_EXTENT_LAST = 0x1


def _check(result: int, *where: str | None) -> int:
    """The one place where a negative errno of the C side becomes an exception."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), *where)
    return result


def freeze(fd: int) -> None:
    """Flush the file system that `fd` is on and hold all its writers (ioctl FIFREEZE, ioctl_fs(2)).

    EBUSY: it is frozen already. EOPNOTSUPP: it cannot be frozen. EPERM: needs CAP_SYS_ADMIN.
    """
    _check(lib.tz_freeze(fd))


def thaw(fd: int) -> None:
    """Let the writers of a frozen file system go on (ioctl FITHAW). EINVAL: it is not frozen."""
    _check(lib.tz_thaw(fd))


def syncfs(fd: int) -> None:
    """Write out the file system that `fd` is on (syncfs(2)). Raises OSError, also for an error of earlier writing."""
    _check(lib.tz_syncfs(fd))


class FileExtent(NamedTuple):
    """A piece of a file that lies in one piece on its device: offsets and length in bytes, FIEMAP_EXTENT_* flags."""

    logical: int
    physical: int
    length: int
    flags: int


def fiemap(fd: int) -> list[FileExtent]:
    """Where a file lies on its device, holes left out, after a sync of the file (ioctl FS_IOC_FIEMAP).

    EOPNOTSUPP: the file system does not tell. The flags say which extents cannot be read at `physical` (unwritten,
    inline, encoded, shared): see linux/fiemap.h.
    """
    found: list[FileExtent] = []
    batch = ffi.new("tz_fiemap_extent[]", _FIEMAP_BATCH)
    start = 0
    while True:
        count = _check(lib.tz_fiemap(fd, start, batch, _FIEMAP_BATCH))
        found += [FileExtent(e.logical, e.physical, e.length, e.flags) for e in batch[0:count]]
        if count == 0 or found[-1].flags & _FIEMAP_EXTENT_LAST:
            return found
        start = found[-1].logical + found[-1].length


def rename_noreplace(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Rename a file, never over another (renameat2 RENAME_NOREPLACE, rename(2)).

    FileExistsError when `new` exists. EINVAL: the file system cannot (NFS); there, link(2) does not replace either.
    """
    result = lib.tz_rename_noreplace(os.fsencode(old), os.fsencode(new))
    _check(result, os.fspath(old), None, os.fspath(new))


class DirectAlignment(NamedTuple):
    """What O_DIRECT asks for, in bytes."""

    memory: int
    offset: int


def direct_alignment(path: str | os.PathLike[str] | int) -> DirectAlignment | None:
    """The alignment that a file or device wants for direct I/O; None: it has no direct I/O (statx STATX_DIOALIGN).

    EOPNOTSUPP: this kernel or file system does not tell (before Linux 6.1; tmpfs; directories).
    """
    fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        memory, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        _check(lib.tz_direct_alignment(fd, memory, offset))
    finally:
        if fd is not path:
            os.close(fd)
    return DirectAlignment(int(memory[0]), int(offset[0])) if offset[0] else None


def io_flusher(on: bool) -> None:
    """Memory that this thread needs is not got by writing to disks (prctl PR_SET_IO_FLUSHER, Linux 5.6).

    For those who serve a disk themselves. Threads, children and programs that they execute inherit it. EPERM: needs
    CAP_SYS_RESOURCE.
    """
    _check(lib.tz_io_flusher(1 if on else 0))


def memfd_seals() -> None:
    """Try the seals that memory shared between processes needs: no resizing, no writing by others (Linux 5.1)."""
    _check(lib.tz_memfd_seals())
