"""Reading a committed recovery point."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from timezero.errors import TimezeroError, UsageError, VerificationError
from timezero.repository import documents, index, manifest, names
from timezero.repository.manifest import DatasetRecord, Manifest, PackRecord
from timezero.repository.patterns import compile_pattern

#: Datasets that an error names.
_TOLD = 10


class RecoveryPoint:
    """One committed backup: its manifest, its indexes, its packs. Immutable; several readers may share it."""

    def __init__(self, root: str, point_id: str, repository_id: str, *, salvage: bool = False) -> None:
        """Read the manifest. FileNotFoundError: there is no such recovery point; VerificationError: it is damaged.

        salvage: go by the other files when it is damaged (timezero.repository.rebuilt); `problem` says what is wrong.
        packs_path: where its packs lie.
        """
        self.id = point_id
        self.problem: str | None = None
        self._directory = os.path.join(root, names.POINTS_DIR, point_id)
        self.packs_path = os.path.join(root, names.PACKS_DIR)
        self.manifest: Manifest
        try:
            self.manifest = self._read_manifest(repository_id)
        except VerificationError as error:
            if not salvage:
                raise
            from timezero.repository import rebuilt

            self.problem = str(error)
            self.manifest = rebuilt.manifest(root, point_id, repository_id, self.problem)

    def _read_manifest(self, repository_id: str) -> Manifest:
        fields = documents.load(os.path.join(self._directory, names.MANIFEST_FILE))
        found = manifest.parse(fields, self.id)
        if found.repository != repository_id:
            fields.fail("it belongs to another repository")
        return found

    @property
    def datasets(self) -> tuple[DatasetRecord, ...]:
        """The datasets that were committed."""
        return self.manifest.datasets

    def dataset(self, name: str) -> DatasetRecord:
        """The dataset of that name. Raises UsageError."""
        record = self.manifest.dataset(name)
        if record is None:
            raise UsageError(f"{self.id}: has no dataset {name!r}; it has {self._there()}")
        return record

    def choose(self, text: str) -> list[DatasetRecord]:
        """The datasets that `text` means, at least one: a name, or a pattern (timezero.repository.patterns).

        Raises UsageError.
        """
        record = self.manifest.dataset(text)
        if record is not None:
            return [record]
        matches = compile_pattern(text).fullmatch
        found = [dataset for dataset in self.datasets if matches(dataset.name)]
        if not found:
            raise UsageError(f"{self.id}: no dataset is or matches {text!r}; it has {self._there()}")
        return found

    def _there(self) -> str:
        told = ", ".join(dataset.name for dataset in self.datasets[:_TOLD])
        more = len(self.datasets) - _TOLD
        return f"{told} and {more} more: see `timezero show`" if more > 0 else told

    def entries(self, dataset: DatasetRecord) -> bytes:
        """The index entries of a dataset, checked against the digest in the manifest."""
        path = os.path.join(self._directory, dataset.file)
        if dataset.index_offset is None:
            return index.read(path, dataset.header, dataset.digest)
        return index.read_gathered(path, dataset.index_offset, dataset.header, dataset.digest)

    def entries_as_they_are(self, dataset: DatasetRecord) -> tuple[bytes, str | None]:
        """The index entries of a dataset, and what is wrong with them.

        Of an index that is damaged what is left (index.read_as_is), of one that is gone nothing.
        """
        try:
            if self.problem is None:
                return self.entries(dataset), None
            problem = "its digest is lost with the manifest"
        except TimezeroError as error:
            problem = str(error)
        path = os.path.join(self._directory, dataset.file)
        try:
            return index.read_as_is(path, dataset.index_offset or 0, dataset.header), problem
        except TimezeroError:
            return b"", problem

    def forget_cached(self) -> None:
        """What is read of this recovery point next comes from the disk, as far as the system forgets on request."""
        paths: list[str] = []
        with suppress(FileNotFoundError), os.scandir(self._directory) as found:
            paths += [entry.path for entry in found if entry.is_file(follow_symlinks=False)]
        paths += [os.path.join(self.packs_path, pack.name) for pack in self.manifest.packs]
        for path in paths:
            forget_cached(path)

    @contextmanager
    def open_packs(self) -> Iterator[Mapping[int, int]]:
        """{pack number: descriptor} of all packs.

        Descriptors are open before the first chunk is read, so a `prune` meanwhile takes nothing away.
        """
        with ExitStack() as stack:
            packs: dict[int, int] = {}
            for pack in self.manifest.packs:
                fd = self.open_pack(pack)
                stack.callback(os.close, fd)
                packs[pack.number] = fd
            yield packs

    @contextmanager
    def open_packs_as_they_are(self) -> Iterator[tuple[Mapping[int, int], list[str]]]:
        """As open_packs, with those of another length, without those that are missing; and what is wrong."""
        with ExitStack() as stack:
            packs: dict[int, int] = {}
            problems: list[str] = []
            for pack in self.manifest.packs:
                try:
                    packs[pack.number] = fd = self.open_pack(pack, any_size=True)
                except TimezeroError as error:
                    problems.append(str(error))
                    continue
                stack.callback(os.close, fd)
                if (problem := self._size_problem(pack, fd)) is not None:
                    problems.append(problem)
            yield packs, problems

    def _size_problem(self, pack: PackRecord, fd: int) -> str | None:
        size = os.fstat(fd).st_size
        if size == pack.bytes:
            return None
        return f"{os.path.join(self.packs_path, pack.name)}: altered or truncated: {size} bytes instead of {pack.bytes}"

    def open_pack(self, pack: PackRecord, *, any_size: bool = False) -> int:
        """A descriptor of a pack, which has its full length unless `any_size` will do. Raises VerificationError."""
        path = os.path.join(self.packs_path, pack.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise VerificationError(f"{path}: the pack is missing; {self.id} needs it") from None
        except OSError as error:
            raise TimezeroError(f"{path}: cannot be read: {error.strerror}") from error
        if not any_size and (problem := self._size_problem(pack, fd)) is not None:
            os.close(fd)
            raise VerificationError(problem)
        return fd


def forget_cached(path: str) -> None:
    """Drop what is clean of a file from the page cache, where that is possible."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
