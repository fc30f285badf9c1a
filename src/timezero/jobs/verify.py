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
from timezero.jobs.batches import batches, packs_used
from timezero.jobs.moving import Moving, Transfer
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.restore import index_source
from timezero.repository import DatasetRecord, RecoveryPoint, Repository
from timezero.repository.index import ENTRY_BYTES

if TYPE_CHECKING:
    from timezero._native.mover import Source

#: Damaged chunks told one by one of a dataset; a disk that lost more has made its point.
DAMAGE_LIMIT = 100


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


_Outcome = Transfer | TimezeroError


@dataclass(frozen=True)
class _Piece:
    """Chunks [first, end) of a dataset, with its index entries and the packs that they need."""

    record: DatasetRecord
    entries: bytes
    packs: Mapping[int, int]
    first: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return min(self.end * self.record.chunk_size, self.record.size) - self.first * self.record.chunk_size

    def source(self) -> Source:
        """The mover's. Raises VerificationError."""
        entries = self.entries[self.first * ENTRY_BYTES : self.end * ENTRY_BYTES]
        return index_source(self.record, entries, self.packs, size=self.size)

    def damaged(self, outcome: _Outcome) -> int | None:
        """The number of the chunk that the transfer ended at; None when all are intact. Raises other errors."""
        if isinstance(outcome, TimezeroError):
            raise outcome
        error = outcome.error()
        if error is None:
            return None
        offset = int(outcome.report["error_offset"])
        if abs(int(outcome.report["error"])) not in (errno.EBADMSG, errno.EIO) or not 0 <= offset < self.size:
            raise error
        return self.first + offset // self.record.chunk_size


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
            for batch in batches(self._point.datasets, 1 + len(packs)):
                self._batch(batch, packs)

    def _batch(self, batch: Sequence[DatasetRecord], packs: Mapping[int, int]) -> None:
        """Check datasets with one mover. Those that it finds damaged are looked at once more, each on its own."""
        before = self._result.size
        self._result.datasets += len(batch)
        self._result.size += sum(record.size for record in batch)
        pieces = [piece for record in batch if (piece := self._piece(record, packs)) is not None]
        for piece, outcome in zip(pieces, self._move(pieces, before), strict=True):
            try:
                self._settle(piece, outcome)
            except TimezeroError as error:
                self._damaged(piece.record, None, str(error))
        self._meter.update(self._result.size)

    def _piece(self, record: DatasetRecord, packs: Mapping[int, int]) -> _Piece | None:
        """All chunks of a dataset; None when there are none, or none that can be looked at."""
        try:
            entries = self._point.entries(record)
            used = packs_used(entries)
            for number in sorted(used - packs.keys()):
                problem = self._broken.get(number, f"it needs pack {number}, which the manifest does not have")
                raise VerificationError(f"{record.name}: {problem}")
        except TimezeroError as error:
            self._damaged(record, None, str(error))
            return None
        needed = {number: packs[number] for number in used}
        return _Piece(record, entries, needed, 0, len(entries) // ENTRY_BYTES) if entries else None

    def _settle(self, piece: _Piece, outcome: _Outcome) -> None:
        """Note what is damaged. A transfer ends at a damaged chunk: what lies before and behind is checked then."""
        damaged = piece.damaged(outcome)
        record, ranges, found = piece.record, [(piece.first, piece.end)], 0
        while ranges:
            first, end = ranges.pop()
            if found:  # the first range has been moved already
                part = dataclasses.replace(piece, first=first, end=end)
                damaged = part.damaged(self._move([part], self._result.size - record.size)[0])
            if damaged is None:
                continue
            where = damaged * record.chunk_size
            problem = f"{record.name}: damaged at byte {where}"
            self._damaged(record, where, f"{problem}: the stored data does not match its digest or cannot be read")
            found += 1
            if found >= DAMAGE_LIMIT:
                self._damaged(record, None, f"{record.name}: {DAMAGE_LIMIT} chunks are damaged, and more may be")
                return
            ranges += [(low, high) for low, high in ((damaged + 1, end), (first, damaged)) if low < high]

    def _move(self, pieces: Sequence[_Piece], before: int) -> list[_Outcome]:
        """Read and check pieces of one chunk size with one mover; how each ended."""
        from timezero._native.mover import Sink

        outcomes: list[_Outcome] = []
        if not pieces:
            return outcomes
        with Moving(self._options, pieces[0].record.chunk_size, [piece.size for piece in pieces]) as machine:
            for piece in pieces:
                try:
                    source = piece.source()
                except TimezeroError as error:
                    outcomes.append(error)
                else:
                    outcomes.append(machine.add(piece.record.name, source, Sink.null(), target=""))
            if machine.transfers:
                machine.run(lambda done: self._meter.update(before + done))
            self._result.bytes_read += sum(int(transfer.report["bytes_read"]) for transfer in machine.transfers)
        return outcomes

    def _damaged(self, record: DatasetRecord, offset: int | None, problem: str) -> None:
        self._result.damage.append(Damage(self._point.id, record.name, offset, f"{self._point.id}: {problem}"))
