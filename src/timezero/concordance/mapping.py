"""The concordance of file datasets: where each file lies on its volume, read while the file systems are frozen.

Everything that is done between freezing and thawing is done for all files at once, in C or in NumPy: maps of single
files are taken out of the columns when they are asked for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from timezero._linux import files
from timezero._native.bitmap import Bitmap
from timezero._native.extents import ExtentMap
from timezero.concordance.metadata import Metadata
from timezero.errors import TimezeroError

if TYPE_CHECKING:
    from timezero.concordance.selection import Designated, FileDataset

Column = NDArray[np.uint64]

_NAMED_IN_ERRORS = 10

#: What the flags of an extent mean for who wants to read it from the device, worst first.
_UNREADABLE = (
    (files.EXTENT_INLINE, "its data lies within its inode (inline)"),
    (files.EXTENT_TAIL, "its end is packed with those of other files"),
    (files.EXTENT_ENCRYPTED, "it is encrypted"),
    (files.EXTENT_ENCODED, "it is compressed or encoded"),
    (files.EXTENT_DELALLOC, "it has data without a place yet, in spite of being frozen"),
    (files.EXTENT_UNKNOWN, "the file system does not tell where it lies"),
    (files.EXTENT_NOT_ALIGNED, "its data is not aligned to blocks"),
)
_PLACELESS = files.EXTENT_DELALLOC | files.EXTENT_UNKNOWN  # until they are written out


@dataclass(frozen=True)
class FileMap:
    """A file at T0. Columns of uint64, bytes: sorted by `logical`, not overlapping, data only; all else reads as zeros.

    `physical` are addresses on the volume. The last extent may reach past `size`, to the end of its block.
    """

    dataset: FileDataset
    size: int
    logical: Column
    physical: Column
    length: Column
    metadata: Metadata


class Concordance(Sequence[FileMap]):
    """The maps of all datasets, in their order. It keeps nothing open, and outlives its Designated."""

    def __init__(self, datasets: Sequence[FileDataset], read: files.Read, columns: _Columns, gone: list[str]) -> None:
        self.datasets = list(datasets)
        self.gone = gone  # names that nothing had at T0
        self._read = read
        self._columns = columns

    def __len__(self) -> int:
        return len(self.datasets)

    @overload
    def __getitem__(self, at: int) -> FileMap: ...
    @overload
    def __getitem__(self, at: slice) -> list[FileMap]: ...
    def __getitem__(self, at: int | slice) -> FileMap | list[FileMap]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        rows = self._columns.rows(number)
        return FileMap(
            self.datasets[number],
            int(self._read.facts["size"][number]),
            self._columns.logical[rows],
            self._columns.physical[rows],
            self._columns.length[rows],
            self._metadata(number),
        )

    def __iter__(self) -> Iterator[FileMap]:
        return (self[number] for number in range(len(self)))

    def domain(self, volume: str, track_size: int, tracks: int, into: Bitmap | None = None) -> Bitmap:
        """The tracks that files of a volume lie on: a bit a track, `tracks` of them. Zeros and holes are on none.

        into: set them there, in a bitmap that is clear, such as one over the memory that a subsystem handed out: of a
        volume of many TiB, only the pages that have bits are touched then.
        Raises TimezeroError when a file lies past the last track.
        """
        bitmap = Bitmap(tracks) if into is None else into
        if not len(self):
            return bitmap
        physical, length = self._columns.physical, self._columns.length
        names = [dataset.volume for dataset in self.datasets]
        if any(name != volume for name in names):
            ours = np.repeat([name == volume for name in names], self._columns.counts())
            physical, length = physical[ours], length[ours]
        # Their tracks are all that matters, so they are laid end to end as if they were one file.
        logical = np.cumsum(length, dtype=np.uint64) - length
        try:
            ExtentMap(logical, physical, length).tracks(track_size, bitmap)
        except (IndexError, OverflowError):
            raise TimezeroError(
                f"files of volume {volume} lie past its end: it is not the volume they are on"
            ) from None
        return bitmap

    def _metadata(self, number: int) -> Metadata:
        facts = self._read.facts[number]
        return Metadata(
            mode=stat.S_IMODE(int(facts["mode"])),
            uid=int(facts["uid"]),
            gid=int(facts["gid"]),
            mtime_ns=int(facts["mtime_ns"]),
            atime_ns=int(facts["atime_ns"]),
            xattrs=self._read.extended_attributes(number),
        )


def map_files(designated: Designated) -> Concordance:
    """The concordance, to be formed while the file systems of all datasets are frozen. Waits for none of them.

    Files are those whose descriptors are held since they were resolved: a held inode is given to no other file. A name
    that means another file by now (one that was renamed over it) stands for that one; a name that is gone
    stands for none, is listed in `gone`, and its dataset is dropped from `designated`. Files
    with a `problem` are not to be mapped: ValueError.

    Raises TimezeroError for a file that cannot be read from its volume after all: then there is no T0.
    """
    if any(dataset.problem for dataset in designated.datasets):
        raise ValueError("a file that cannot be mapped is to be read through its file system")
    read = _read(designated)
    gone: list[str] = []
    changed = np.flatnonzero(read.facts["named"] != files.NAMED_SAME)
    if changed.size:
        for number in changed[::-1].tolist():  # from the end: a dataset that is dropped moves those behind it
            name = designated[number].name
            if not designated.reopen(number):
                gone.append(name)
        read = _read(designated)  # nothing changes any more: they are frozen
        if read.facts["named"].any():
            raise TimezeroError("names of files changed while their file systems had to be frozen: there is no T0")
    bad = problems(read, dirty=False)
    if bad:
        lines = [f"{designated[number].name}: {why}" for number, why in bad.items()]
        raise TimezeroError("there is no T0: " + "; ".join(lines[:_NAMED_IN_ERRORS]))
    return Concordance(designated.datasets, read, _data(designated, read), gone[::-1])


def _read(designated: Designated) -> files.Read:
    datasets = designated.datasets
    return files.read_files([dataset.fd for dataset in datasets], [os.fsencode(dataset.path) for dataset in datasets])


def problems(read: files.Read, *, dirty: bool) -> dict[int, str]:
    """Which files cannot be read from their device, and why. dirty: they are being written, which is no problem yet."""
    flags = read.flags
    mask = np.uint64(sum(flag for flag, _ in _UNREADABLE))
    wrong = flags & mask
    if dirty:
        wrong = np.where(flags & np.uint64(files.EXTENT_DELALLOC), wrong & ~np.uint64(_PLACELESS), wrong)
    ends = read.facts["extents_end"]
    found = set(np.searchsorted(ends, np.flatnonzero(wrong), side="right").tolist())
    found |= set(np.flatnonzero(read.facts["error"]).tolist())
    found |= set(np.flatnonzero(read.facts["attributes"] & np.uint64(files.ATTRIBUTE_ENCRYPTED)).tolist())
    found |= set(np.flatnonzero(read.facts["xflags"] & np.uint32(files.XFLAG_REALTIME)).tolist())
    return {number: problem_of(read, number, dirty=dirty) for number in sorted(found)}


def problem_of(read: files.Read, number: int, *, dirty: bool = False) -> str:
    facts = read.facts[number]
    if facts["error"]:
        return f"{files.STEPS[facts['step']]}: {os.strerror(int(facts['error']))}"
    if int(facts["attributes"]) & files.ATTRIBUTE_ENCRYPTED:
        return "it is encrypted"
    if int(facts["xflags"]) & files.XFLAG_REALTIME:
        return "it lies on the realtime device of its file system"
    first = int(read.facts["extents_end"][number - 1]) if number else 0
    flags = int(np.bitwise_or.reduce(read.flags[first : int(facts["extents_end"])], initial=0))
    ignored = _PLACELESS if dirty else 0
    return next((why for flag, why in _UNREADABLE if flags & flag & ~ignored), "it cannot be read from its device")


@dataclass(frozen=True)
class _Columns:
    logical: Column
    physical: Column
    length: Column
    ends: Column  # of the rows of each file

    def rows(self, number: int) -> slice:
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def counts(self) -> NDArray[np.int64]:
        return _counts(self.ends)


def _counts(ends: Column) -> NDArray[np.int64]:
    """How many rows each file has."""
    whole: NDArray[np.int64] = ends.astype(np.int64)
    return whole - np.concatenate((np.zeros(1, np.int64), whole))[:-1]


def _data(designated: Designated, read: files.Read) -> _Columns:
    """The extents that hold data, up to the end of the block that the file ends in, as addresses of the volume."""
    count = len(designated)
    datasets = designated.datasets
    ends = read.facts["extents_end"]
    rows = _counts(ends)
    blocks = np.fromiter((dataset.mount.block_size for dataset in datasets), np.uint64, count)
    offsets = np.fromiter((dataset.mount.offset for dataset in datasets), np.uint64, count)
    limits = (read.facts["size"] + blocks - np.uint64(1)) // blocks * blocks

    limit = np.repeat(limits, rows)
    is_data = ((read.flags & np.uint64(files.EXTENT_UNWRITTEN)) == 0) & (read.logical < limit)
    logical = read.logical[is_data]
    length = np.minimum(read.length[is_data], limit[is_data] - logical)
    physical = read.physical[is_data] + np.repeat(offsets, rows)[is_data]
    before = np.concatenate(([np.uint64(0)], np.cumsum(is_data, dtype=np.uint64)))
    return _Columns(logical, physical, length, before[ends])
