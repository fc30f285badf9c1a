"""Facts, extents and extended attributes of many open files in one call: what a concordance is formed from."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from timezero._linux._cffi import ffi, lib

Column = NDArray[np.uint64]

#: struct tz_file_facts of tz/files.h, field by field.
FACTS = np.dtype(
    [
        *((name, np.uint64) for name in ("size", "inode", "device")),
        *((name, np.int64) for name in ("atime_ns", "mtime_ns", "ctime_ns")),
        *((name, np.uint64) for name in ("attributes", "extents_end", "attributes_end")),
        *((name, np.uint32) for name in ("mode", "uid", "gid", "links", "generation", "xflags", "named", "step")),
        ("error", np.int32),
        ("reserved", np.uint32),
    ]
)
assert FACTS.itemsize == lib.TZ_FACTS_SIZE

STEPS = ("", "its status", "its extents", "its extended attributes")  # enum tz_file_step
NAMED_SAME, NAMED_OTHER, NAMED_GONE = range(3)  # enum tz_file_named

EXTENT_UNKNOWN = 0x2
EXTENT_DELALLOC = 0x4
EXTENT_ENCODED = 0x8
EXTENT_ENCRYPTED = 0x80
EXTENT_NOT_ALIGNED = 0x100
EXTENT_INLINE = 0x200
EXTENT_TAIL = 0x400
EXTENT_UNWRITTEN = 0x800

ATTRIBUTE_ENCRYPTED = 0x800  # STATX_ATTR_ENCRYPTED
XFLAG_REALTIME = 0x1  # FS_XFLAG_REALTIME


@dataclass(frozen=True)
class Read:
    """What read_files found: rows of `facts` in the order asked for, extents and attributes one file after the other.

    facts["extents_end"] and facts["attributes_end"] say where a file's rows and bytes end; they begin where those of
    the file before it end. Bytes, all of them, physical ones of the file system's device; flags are FIEMAP_EXTENT_*.
    """

    facts: NDArray[np.void]
    logical: Column
    physical: Column
    length: Column
    flags: Column
    attributes: memoryview

    def extended_attributes(self, number: int) -> dict[str, bytes]:
        """Those of file `number`, by name."""
        ends = self.facts["attributes_end"]
        at, end = int(ends[number - 1]) if number else 0, int(ends[number])
        found: dict[str, bytes] = {}
        while at < end:
            name_length, length = (int.from_bytes(self.attributes[at + i : at + i + 4], sys.byteorder) for i in (0, 4))
            value = at + 8 + name_length
            found[os.fsdecode(bytes(self.attributes[at + 8 : value]))] = bytes(self.attributes[value : value + length])
            at = value + length
        return found


def read_files(descriptors: Sequence[int], names: Sequence[bytes] | None = None, *, constants: bool = False) -> Read:
    """Read many files through their descriptors, without the GIL; waits for no frozen file system.

    names: the absolute path of each, to look whether it still names this file (facts["named"]).
    constants: generation and flags, which a file that is held open keeps, instead of the attributes that it may change.
    What fails for one file stands in its facts: "error" is an errno, "step" an index of STEPS. MemoryError.
    """
    count = len(descriptors)
    fds = np.asarray(descriptors, np.int32)
    paths = ffi.NULL
    if names is not None:
        # One buffer: ten thousand of their own cost more than the system calls do.
        text = ffi.from_buffer(b"\0".join(names) + b"\0")
        lengths = np.fromiter(map(len, names), np.uint64, count) + 1
        starts = int(ffi.cast("uintptr_t", text)) + np.cumsum(lengths, dtype=np.uint64) - lengths
        paths = ffi.cast("const char *const *", starts.ctypes.data)
    out = ffi.new("tz_files **")
    options = lib.TZ_FILES_CONSTANTS if constants else lib.TZ_FILES_ATTRIBUTES
    result = lib.tz_files_read(out, ffi.cast("int *", fds.ctypes.data), paths, count, options)
    if result < 0:
        raise MemoryError(f"no memory for the extents of {count} files")
    files = ffi.gc(out[0], lib.tz_files_free)

    def column(pointer: object, rows: int) -> Column:
        # A copy: the columns end where the object does, and nobody has to keep that.
        return np.frombuffer(ffi.buffer(pointer, rows * 8), np.uint64).copy() if rows else np.empty(0, np.uint64)

    return Read(
        np.frombuffer(ffi.buffer(files.facts, count * FACTS.itemsize), FACTS).copy() if count else np.empty(0, FACTS),
        column(files.logical, files.extents),
        column(files.physical, files.extents),
        column(files.length, files.extents),
        column(files.flags, files.extents),
        memoryview(bytes(ffi.buffer(files.attributes, files.bytes))),
    )
