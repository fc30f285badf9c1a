"""Rare, stateless system calls and probes, as thin typed functions. Nothing here runs once an I/O.

Errors are OSError with the kernel's errno. Sizes and offsets are bytes.
"""

from timezero._linux.calls import (
    DirectAlignment,
    FileExtent,
    direct_alignment,
    fiemap,
    freeze,
    memfd_seals,
    rename_noreplace,
    syncfs,
    thaw,
)
from timezero._linux.devices import mounts_of

__all__ = [
    "DirectAlignment",
    "FileExtent",
    "direct_alignment",
    "fiemap",
    "freeze",
    "memfd_seals",
    "mounts_of",
    "rename_noreplace",
    "syncfs",
    "thaw",
]
