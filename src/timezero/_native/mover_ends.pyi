"""The two ends of a transfer: sources, sinks, and what they share: a session's memory, packs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

class SessionView:
    """A session on one served volume: its memory, mapped once for all sources over it.

    handles: owned_fd, shared_fd, drain_fd, volume_fd, file_fd (-1: none); all duplicated. Raises OSError: EPROTO when
    they are not those of a session. Sources keep what they need; a view may be closed before they are used.
    """

    def __init__(self, handles: Mapping[str, int]) -> None: ...
    @property
    def size(self) -> int:
        """Of the volume, bytes."""
    @property
    def track_size(self) -> int:
        """Bytes."""
    def close(self) -> None:
        """Let go; a closed view refuses (ValueError). Safe to repeat."""

class Source:
    """Where a transfer reads. Used by one transfer."""

    @property
    def size(self) -> int:
        """Bytes."""
    @property
    def direct(self) -> bool:
        """Is all of it read past the page cache? Known of datasets of a repository; else False."""
    @staticmethod
    def file(fd: int, size: int | None = None, *, buffered: bool = False) -> Source:
        """A file or device that no one serves. The descriptor is duplicated by a fresh open."""
    @staticmethod
    def session(session: SessionView | Mapping[str, int]) -> Source:
        """A served volume under a session, all of it: its view, or handles for a view of its own.

        One source of this kind a view; it may be shared with sources of files.
        """
    @staticmethod
    def extents(
        view: SessionView,
        size: int,
        logical: NDArray[np.uint64],
        physical: NDArray[np.uint64],
        length: NDArray[np.uint64],
    ) -> Source:
        """A file of `size` bytes on a served volume under a session, by its extents.

        Columns of equal length: `length` bytes at `logical` of the file lie at `physical` of the volume. In any order,
        not overlapping in `logical`; what none covers is zero, what lies past `size` is left out. Raises ValueError
        (columns of different lengths), OSError: EINVAL (overlap, length 0), EOVERFLOW, ERANGE (past the volume's end).

        All sources of a view have to be added to their movers before the first of these starts: `Mover.add` raises
        OSError(EBUSY) once one is being read. Their tracks may overlap.
        """
    @staticmethod
    def index(entries: bytes, size: int, chunk_size: int, packs: Mapping[int, int], *, salvage: bool = False) -> Source:
        """A dataset of a repository: index entries as stored, {pack number: descriptor} (duplicated).

        salvage: what is damaged becomes the outcome of its chunk (Mover.outcomes), and zeros. Raises OSError(EBADMSG)
        when an entry is impossible, unless it is salvaged.
        """

class PackWriter:
    """The packs of one recovery point: PREFIX-NNNN.pack in the directory `dir_fd`."""

    def __init__(self, dir_fd: int, prefix: str, *, max_bytes: int = 0) -> None: ...
    def finish(self) -> list[int]:
        """fdatasync all packs; their sizes in bytes, by number. Any error is final (OSError)."""
    def close(self) -> None: ...

class Sink:
    @staticmethod
    def image(fd: int, size: int, *, fresh: bool, buffered: bool = False) -> Sink:
        """A raw image file or block device, open for writing; the descriptor is duplicated by a fresh open."""
    @staticmethod
    def delta(fd: int, size: int, *, keep: bool = False) -> Sink:
        """A target that is read first: only chunks whose digest differs are written. For Source.index.

        keep: where the source is damaged the target stays as it is, instead of zeros.
        """
    @staticmethod
    def stream(fd: int) -> Sink: ...
    @staticmethod
    def packs(writer: PackWriter) -> Sink: ...
    @staticmethod
    def null() -> Sink: ...
