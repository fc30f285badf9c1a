"""verify: read every chunk of recovery points from the packs, and check it against its digest.

Indexes and packs are checked as files first: there, of the right length, matching their digest. Then chunks are read
past the page cache where the file system can, because what lies in memory proves nothing about the disk. All damage
is reported, not just the first.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from timezero.errors import TimezeroError, VerificationError
from timezero.jobs.moving import Moving
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.restore import index_source
from timezero.repository import DatasetRecord, RecoveryPoint, Repository
from timezero.repository.index import ENTRY_BYTES

if TYPE_CHECKING:
    from timezero._native.mover import Source

#: Damaged chunks told one by one of a dataset; a disk that lost more has made its point.
DAMAGE_LIMIT = 100
#: Entries (tz_index_entry) seen as 32-bit words: which hold the pack's number and the stored length.
_WORDS, _PACK_WORD, _LENGTH_WORD = ENTRY_BYTES // 4, 2, 3


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    dataset: None for a whole recovery point. offset: bytes, None for all of a dataset.
    """

    point: str
    dataset: str | None
    offset: int | None
    problem: str


@dataclass
class VerifyResult:
    """What was looked at, and what is damaged. bytes_read: from packs."""

    points: list[str] = field(default_factory=list)
    datasets: int = 0
    size: int = 0
    bytes_read: int = 0
    damage: list[Damage] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"intact": not self.damage, **dataclasses.asdict(self)}

    def raise_for_damage(self) -> None:
        """Raises VerificationError when anything is damaged."""
        if self.damage:
            more = f" (and {len(self.damage) - 1} more)" if len(self.damage) > 1 else ""
            raise VerificationError(f"{self.damage[0].problem}{more}: restore what is intact, and make a new backup")


def verify(
    repository: str,
    points: Sequence[str] = (),
    *,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
) -> VerifyResult:
    """Verify recovery points (all when none is named). The result says what is damaged; call `raise_for_damage` on it.

    points: ids, unique prefixes or "latest". Raises UsageError, NoRepositoryError, TimezeroError.
    """
    opened = Repository(repository)
    result = VerifyResult()
    found: list[RecoveryPoint] = []
    for point_id in dict.fromkeys(map(opened.resolve, points)) if points else opened.ids():
        result.points.append(point_id)
        try:
            found.append(opened.point(point_id))
        except VerificationError as error:
            result.damage.append(Damage(point_id, None, None, str(error)))
    meter = Meter(progress, sum(point.manifest.size for point in found))
    for point in found:
        _Verification(point, mover or MoverOptions(), meter, result).run()
    return result


class _Verification:
    """One recovery point's."""

    def __init__(self, point: RecoveryPoint, options: MoverOptions, meter: Meter, result: VerifyResult) -> None:
        self._point = point
        self._options = options
        self._meter = meter
        self._result = result
        self._broken: dict[int, str] = {}

    def run(self) -> None:
        with ExitStack() as stack:
            packs: dict[int, int] = {}
            for pack in self._point.manifest.packs:
                try:
                    packs[pack.number] = fd = self._point.open_pack(pack)
                except TimezeroError as error:
                    self._broken[pack.number] = str(error)
                    continue
                stack.callback(os.close, fd)
                # Where direct I/O is not to be had, what is clean in the cache is dropped, so that the disk is read.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for record in self._point.datasets:
                self._dataset(record, packs)

    def _dataset(self, record: DatasetRecord, packs: Mapping[int, int]) -> None:
        before = self._result.size
        self._result.datasets += 1
        self._result.size += record.size
        try:
            entries = self._point.entries(record)
            for number in sorted(_packs_used(entries) - packs.keys()):
                problem = self._broken.get(number, f"it needs pack {number}, which the manifest does not have")
                raise VerificationError(f"{record.name}: {problem}")
            self._chunks(record, entries, packs, before)
        except TimezeroError as error:
            self._damaged(record, None, str(error))
        self._meter.update(self._result.size)

    def _chunks(self, record: DatasetRecord, entries: bytes, packs: Mapping[int, int], before: int) -> None:
        """Check all chunks. A transfer ends at a damaged one: what lies before and behind is checked on its own."""
        ranges = [(0, len(entries) // ENTRY_BYTES)] if entries else []
        found = 0
        while ranges:
            first, end = ranges.pop()
            damaged = self._range(record, entries, packs, first, end, before)
            if damaged is None:
                continue
            found += 1
            if found >= DAMAGE_LIMIT:
                self._damaged(record, None, f"{record.name}: {DAMAGE_LIMIT} chunks are damaged, and more may be")
                return
            ranges += [(low, high) for low, high in ((damaged + 1, end), (first, damaged)) if low < high]

    def _range(
        self, record: DatasetRecord, entries: bytes, packs: Mapping[int, int], first: int, end: int, before: int
    ) -> int | None:
        """Check chunks [first, end); the number of a damaged one, or None."""
        from timezero._native.mover import Sink

        part = entries[first * ENTRY_BYTES : end * ENTRY_BYTES]
        at = first * record.chunk_size
        size = min(end * record.chunk_size, record.size) - at
        source: Source = index_source(record, part, packs, size=size)
        with Moving(self._options, record.chunk_size, [size]) as machine:
            transfer = machine.add(record.name, source, Sink.null(), target="")
            machine.run(lambda done: self._meter.update(before + at + done))
            self._result.bytes_read += int(transfer.report["bytes_read"])
            error = transfer.error()
        if error is None:
            return None
        offset = int(transfer.report["error_offset"])
        if abs(int(transfer.report["error"])) not in (errno.EBADMSG, errno.EIO) or not 0 <= offset < size:
            raise error
        chunk = first + offset // record.chunk_size
        where = chunk * record.chunk_size
        problem = f"{record.name}: damaged at byte {where}"
        self._damaged(record, where, f"{problem}: the stored data does not match its digest or cannot be read")
        return chunk

    def _damaged(self, record: DatasetRecord, offset: int | None, problem: str) -> None:
        self._result.damage.append(Damage(self._point.id, record.name, offset, f"{self._point.id}: {problem}"))


def _packs_used(entries: bytes) -> set[int]:
    words = memoryview(entries).cast("I")
    return {pack for pack, length in zip(words[_PACK_WORD::_WORDS], words[_LENGTH_WORD::_WORDS], strict=True) if length}
