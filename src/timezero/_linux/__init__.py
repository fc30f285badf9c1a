"""Rare, stateless system calls and probes, as thin typed functions. Nothing here runs once an I/O.

Errors are OSError with the kernel's errno. Sizes and offsets are bytes. Everything is imported when it is first used:
who freezes, or gives up rights, imports by name beforehand.
"""

from typing import TYPE_CHECKING

from timezero._late import late

if TYPE_CHECKING:
    from timezero._linux.calls import (
        DirectAlignment,
        FileExtent,
        direct_alignment,
        fiemap,
        freeze,
        io_flusher,
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
    "io_flusher",
    "memfd_seals",
    "mounts_of",
    "rename_noreplace",
    "syncfs",
    "thaw",
]

__getattr__ = late(
    __name__,
    {name: "timezero._linux.devices" if name == "mounts_of" else "timezero._linux.calls" for name in __all__},
)
