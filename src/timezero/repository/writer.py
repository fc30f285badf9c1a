"""Writing a recovery point: from its id to its manifest.

Order of a commit: packs are durable (PackWriter.finish), index files are durable, their directories are, up to the
repository's; packs are looked up by name once more; the manifest is published without replacing. Only then does the
recovery point exist. Whatever goes wrong before leaves a directory without a manifest, which nobody lists and prune
sweeps.

Errors: OSError where the system refuses; one of an fsync is final.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from timezero._crash import crash_point
from timezero.errors import TimezeroError
from timezero.repository import documents, durable, index, names
from timezero.repository.locks import FileLock
from timezero.repository.manifest import Manifest, PackRecord

if TYPE_CHECKING:
    from timezero.repository.opened import Opened

#: Seconds that a backup with all its data secured waits for a prune before it gives up.
_PUBLISH_PATIENCE_S = 600.0


class PointWriter:
    """A recovery point that is being written.

    A context manager: entering it takes an id, leaving it without `commit` removes everything of it. Where it is one of
    several on a stack, push it there first and call `begin` then: an interrupt may come between any two steps.
    """

    def __init__(self, repository: Opened) -> None:
        """Nothing is made yet."""
        self._repository = repository
        self._lock: FileLock | None = None
        self._committed = False
        self._gathered: io.BufferedWriter | None = None
        self.id = self._directory = ""

    def begin(self) -> None:
        """Take a new id and its lock. Raises TimezeroError when the repository cannot be written, LockedError."""
        repository = self._repository
        try:
            for directory in (repository.points_path, repository.packs_path):
                os.makedirs(directory, mode=0o700, exist_ok=True)
            durable.sync_directory(repository.path)
            with repository.lock_shared():
                while not self._make_directory():
                    pass
                self._take_lock()
        except OSError as error:
            raise TimezeroError(f"{repository.path}: cannot be written: {error.strerror}") from error

    def _make_directory(self) -> bool:
        """False: another has this id."""
        point_id = names.new_id()
        self._directory = os.path.join(self._repository.points_path, point_id)
        self.id = point_id  # last: with it `abort` begins to look
        try:
            os.mkdir(self._directory, 0o700)
        except FileExistsError:
            self.id = ""  # not ours to remove
            return False
        return True

    def _take_lock(self) -> None:
        crash_point("point.directory")
        what = f"{self.id}: locked by another timezero"
        self._lock = FileLock(os.path.join(self._directory, names.LOCK_FILE), shared=False, what=what, create=True)
        crash_point("point.locked")
        durable.sync_directory(self._repository.points_path)

    @property
    def packs_path(self) -> str:
        """The directory that packs go to; their names begin with `id`."""
        return self._repository.packs_path

    def add_index(self, dataset: str, header: index.IndexHeader, entries: bytes) -> str:
        """Write a dataset's index as a file of its own, durable. Its SHA-256 in hex."""
        _check_entries(header, entries)
        durable.write_new(os.path.join(self._directory, names.index_file(dataset)), header.encode(), entries)
        crash_point("index.written")
        return index.digest(header, entries)

    def gather_index(self, header: index.IndexHeader, entries: bytes) -> tuple[int, str]:
        """Add a dataset's index to those in one file, durable with the commit: one fsync for many datasets.

        Its place, which is DatasetRecord.index_offset, and its SHA-256 in hex.
        """
        _check_entries(header, entries)
        if self._gathered is None:
            path = os.path.join(self._directory, names.GATHERED_FILE)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._gathered = io.BufferedWriter(io.FileIO(fd, "wb"), 1 << 20)
        offset = self._gathered.tell()
        self._gathered.write(header.encode())
        self._gathered.write(entries)
        return offset, index.digest(header, entries)

    def pack_records(self, sizes: Sequence[int]) -> tuple[PackRecord, ...]:
        """The records of the packs that PackWriter.finish reported."""
        return tuple(PackRecord(number, names.pack_name(self.id, number), size) for number, size in enumerate(sizes))

    def commit(self, manifest: Manifest) -> None:
        """Publish the manifest: from here on the recovery point exists. Packs and indexes are in place.

        Raises TimezeroError when a pack has gone, LockedError when a prune does not end.
        """
        if manifest.id != self.id:
            raise ValueError("the manifest of another recovery point")
        content = manifest.encode()
        if len(content) > documents.DOCUMENT_MAX_BYTES:
            raise TimezeroError(
                f"{self.id}: {len(manifest.datasets)} datasets are too many for one recovery point: its manifest would "
                f"have {len(content)} bytes, and {documents.DOCUMENT_MAX_BYTES} can be read: nothing is committed"
            )
        if self._gathered is not None:
            self._gathered.flush()
            os.fsync(self._gathered.fileno())
        durable.sync_directory(self._repository.packs_path)
        durable.sync_directory(self._directory)
        durable.sync_directory(self._repository.points_path)
        durable.sync_directory(self._repository.path)
        # Its maker has done so, unless he was killed before; who may not read the parent is not its maker.
        with suppress(PermissionError):
            durable.sync_directory(os.path.dirname(self._repository.path))
        crash_point("directories.synced")
        with self._repository.lock_shared(_PUBLISH_PATIENCE_S):
            self._look_up(manifest.packs)
            self._publish(content)
        self._committed = True
        crash_point("point.committed")
        self._release()

    def _publish(self, content: bytes) -> None:
        try:
            durable.publish(self._directory, names.MANIFEST_FILE, content)
        except OSError:
            # The name may be there already, but not durably: a recovery point that could vanish is none.
            durable.remove(os.path.join(self._directory, names.MANIFEST_FILE))
            raise

    def _look_up(self, packs: Sequence[PackRecord]) -> None:
        for pack in packs:
            path = os.path.join(self._repository.packs_path, pack.name)
            try:
                size = os.stat(path, follow_symlinks=False).st_size
            except FileNotFoundError:
                raise TimezeroError(f"{path}: the pack went away while the backup ran: nothing is committed") from None
            if size != pack.bytes:
                raise TimezeroError(f"{path}: the pack changed while the backup ran: nothing is committed")

    def abort(self) -> None:
        """Remove everything of this id, as far as the system lets us; prune sweeps the rest. Safe to repeat."""
        if self.id and not self._committed and not os.path.lexists(os.path.join(self._directory, names.MANIFEST_FILE)):
            with suppress(OSError):  # what stays is neither listed nor restorable
                sweep(self._repository, self.id)
        self._release()

    def _release(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered is not None:
            with suppress(OSError):  # what could not be written had its error, or is not wanted any more
                gathered.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def __enter__(self) -> PointWriter:
        try:
            self.begin()
        except BaseException:
            self.abort()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


def _check_entries(header: index.IndexHeader, entries: bytes) -> None:
    if len(entries) != header.chunks * index.ENTRY_BYTES:
        raise ValueError(f"{len(entries)} bytes of entries for {header.chunks} chunks")


def sweep(repository: Opened, point_id: str) -> int:
    """Remove the packs and the directory of a recovery point that has no manifest, and whose lock the caller holds.

    Bytes of the packs removed.
    """
    freed = 0
    for name in os.listdir(repository.packs_path):
        if names.pack_owner(name) == point_id:
            path = os.path.join(repository.packs_path, name)
            freed += os.stat(path, follow_symlinks=False).st_size
            durable.remove(path)
    remove_point_directory(repository, point_id)
    return freed


def remove_point_directory(repository: Opened, point_id: str) -> None:
    """Remove recovery-points/<id> and the files in it, its lock last; its own backup may be quicker."""
    directory = os.path.join(repository.points_path, point_id)
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory), key=lambda name: name == names.LOCK_FILE):
            durable.remove(os.path.join(directory, name))
        os.rmdir(directory)
    durable.sync_directory(repository.points_path)
