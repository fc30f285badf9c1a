"""The two ends of a transfer: sources, sinks, and the packs that sinks share."""

from collections.abc import Mapping

class Source:
    """Where a transfer reads. Used by one transfer."""

    @property
    def size(self) -> int:
        """Bytes."""
    @staticmethod
    def file(fd: int, size: int | None = None, *, buffered: bool = False) -> Source:
        """A file or device that no one serves. The descriptor is duplicated by a fresh open."""
    @staticmethod
    def session(handles: Mapping[str, int]) -> Source:
        """A served volume under a session: owned_fd, shared_fd, drain_fd, volume_fd, file_fd; all duplicated."""
    @staticmethod
    def index(entries: bytes, size: int, chunk_size: int, packs: Mapping[int, int]) -> Source:
        """A dataset of a repository: index entries as stored, {pack number: descriptor} (duplicated).

        Raises OSError(EBADMSG) when an entry is impossible.
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
    def stream(fd: int) -> Sink: ...
    @staticmethod
    def packs(writer: PackWriter) -> Sink: ...
    @staticmethod
    def null() -> Sink: ...
