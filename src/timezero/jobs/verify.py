"""verify: read chunks of recovery points from the packs, and check them against their digests.

Everything is read past the page cache where the file system can, and what is in the cache is dropped first where it
cannot: what lies in memory proves nothing about the disk. All damage is reported, chunk by chunk, and what is left of
each damaged dataset. A sample looks at some chunks and says what that proves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero.errors import TimezeroError, UsageError, VerificationError
from timezero.jobs import damage
from timezero.jobs.batches import batches, entries_of, packs_used, stored_chunks
from timezero.jobs.damage import DAMAGE_LIMIT, Damage, Loss
from timezero.jobs.moving import Moving, Transfer
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.restore import index_source
from timezero.jobs.sampling import Sample, Sampler
from timezero.repository import DatasetRecord, RecoveryPoint, Repository

if TYPE_CHECKING:
    from timezero._native.mover import Source


@dataclass
class VerifyResult:
    """What was looked at, and what is damaged.

    size: bytes of the datasets. bytes_read: from packs. damage: in the order of recovery points and datasets, no more
    than DAMAGE_LIMIT chunks; damage_left_off: how many more there are. losses: what is left of damaged datasets that
    were looked at whole, no more than DAMAGE_LIMIT ranges in all. sample: of a verification that looked at some chunks
    only. cached: something was read through the page cache, because its file system has no other way.
    """

    points: list[str] = field(default_factory=list)
    datasets: int = 0
    size: int = 0
    bytes_read: int = 0
    damage: list[Damage] = field(default_factory=list)
    damage_left_off: int = 0
    losses: list[Loss] = field(default_factory=list)
    sample: Sample | None = None
    cached: bool = False

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "intact": not self.damage,
            **vars(self),
            "damage": [each._asdict() for each in self.damage],
            "losses": [each.to_json() for each in self.losses],
            "sample": None if self.sample is None else self.sample._asdict(),
        }

    def raise_for_damage(self) -> None:
        """Raises VerificationError when anything is damaged."""
        if self.damage:
            count = len(self.damage) + self.damage_left_off - 1
            more = f" (and {count} more)" if count else ""
            raise VerificationError(f"{self.damage[0].problem}{more}: restore what is intact, and make a new backup")


def verify(
    repository: str,
    points: Sequence[str] = (),
    *,
    sample: float | None = None,
    seed: int | None = None,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
) -> VerifyResult:
    """Verify recovery points (all when none is named). The result says what is damaged; call `raise_for_damage` on it.

    points: ids, unique prefixes or "latest". sample: read only so many percent of the stored chunks, chosen at random
    from `seed` (None: another one each time). Raises UsageError, NoRepositoryError, TimezeroError.
    """
    if sample is not None and not 0 < sample <= 100:
        raise UsageError(f"a sample of {sample:g} %: it can be more than 0 and up to 100")
    opened = Repository(repository)
    result = VerifyResult()
    found: list[RecoveryPoint] = []
    for point_id in dict.fromkeys(map(opened.resolve, points)) if points else opened.ids():
        result.points.append(point_id)
        try:
            point = opened.point(point_id, salvage=True)
        except VerificationError as error:
            result.damage.append(Damage(point_id, None, None, str(error)))
            continue
        found.append(point)
        if point.problem is not None:
            result.damage.append(Damage(point_id, None, None, point.problem))
    sampler = None
    if sample is not None:
        sampler = Sampler(sample, int.from_bytes(os.urandom(4), "big") if seed is None else seed)
    meter = Meter(progress, int(sum(point.manifest.size for point in found) * (sample or 100) / 100))
    room = _Room()
    for point in found:
        _Verification(point, mover or MoverOptions(), meter, result, sampler, room).run()
    if sampler is not None:
        result.sample = sampler.result()
    return result


class _Piece(NamedTuple):
    """Chunks of a dataset. numbers: which ones, None for all; entries: theirs."""

    record: DatasetRecord
    entries: bytes
    index_problem: str | None
    numbers: Sequence[int] | None

    @property
    def size(self) -> int:
        """Bytes. Only the last chunk can be short, and it comes last."""
        if self.numbers is None:
            return self.record.size
        if not self.numbers:
            return 0
        last = min(self.record.chunk_size, self.record.size - self.numbers[-1] * self.record.chunk_size)
        return (len(self.numbers) - 1) * self.record.chunk_size + last

    def number(self, place: int) -> int:
        """The number, in the dataset, of a chunk of this piece."""
        return place if self.numbers is None else self.numbers[place]

    def source(self, packs: Mapping[int, int]) -> Source:
        """The mover's."""
        needed = packs_used(self.entries) & packs.keys()  # each is a descriptor
        return index_source(self.record, self.entries, {n: packs[n] for n in needed}, size=self.size, salvage=True)


class _Room:
    """How many damaged chunks and lost ranges may still be told one by one."""

    chunks = ranges = DAMAGE_LIMIT


class _Verification:
    """One recovery point's. room: shared by all of them."""

    def __init__(
        self,
        point: RecoveryPoint,
        options: MoverOptions,
        meter: Meter,
        result: VerifyResult,
        sampler: Sampler | None,
        room: _Room,
    ) -> None:
        self._point = point
        self._places = damage.Places(point.id, point.manifest.packs)
        self._options = options
        self._meter = meter
        self._result = result
        self._sampler = sampler
        self._room = room
        self._done = 0

    def run(self) -> None:
        self._point.forget_cached()
        with self._point.open_packs_as_they_are() as (packs, problems):
            self._result.damage += [
                Damage(self._point.id, None, None, f"{self._point.id}: {problem}") for problem in problems
            ]
            for batch in batches(self._point.datasets, 1 + len(packs)):
                self._batch(batch, packs)

    def _batch(self, batch: Sequence[DatasetRecord], packs: Mapping[int, int]) -> None:
        """Check datasets with one mover."""
        self._result.datasets += len(batch)
        self._result.size += sum(record.size for record in batch)
        pieces = [piece for record in batch if (piece := self._piece(record)) is not None and piece.size]
        for piece, outcomes in self._move(pieces, packs):
            self._settle(piece, outcomes)
        self._done += sum(piece.size for piece in pieces)
        self._meter.update(self._done)

    def _piece(self, record: DatasetRecord) -> _Piece | None:
        """What is to be read of a dataset; None when that is nothing."""
        entries, problem = self._point.entries_as_they_are(record)
        if problem is not None:
            self._damaged(record, f"{record.name}: {problem}")
            if not entries:
                self._result.losses.append(damage.nothing_left(self._point.id, record, problem))
                return None
        if not entries:
            return None
        if self._sampler is None:
            return _Piece(record, entries, problem, None)
        # All entries go before the mover has a copy of those that were chosen: that may be all of them again.
        numbers = self._sampler.choose(stored_chunks(entries), sum(1 for _ in stored_chunks(entries)))
        return _Piece(record, entries_of(entries, numbers), problem, numbers)

    def _move(self, pieces: Sequence[_Piece], packs: Mapping[int, int]) -> list[tuple[_Piece, bytes]]:
        """Read and check pieces of one chunk size with one mover; how their chunks ended."""
        from timezero._native.mover import Sink

        if not pieces:
            return []
        moved: list[tuple[_Piece, Transfer]] = []
        with Moving(
            self._options, pieces[0].record.chunk_size, [piece.size for piece in pieces], indexed=True
        ) as machine:
            for piece in pieces:
                try:
                    source = piece.source(packs)
                except TimezeroError as error:
                    self._damaged(piece.record, str(error))
                    continue
                self._result.cached |= not source.direct
                transfer = machine.add(piece.record.name, source, Sink.null(), target="", place=self._point.packs_path)
                moved.append((piece, transfer))
            if moved:
                machine.run(lambda done: self._meter.update(self._done + done))
            self._result.bytes_read += sum(int(transfer.report["bytes_read"]) for _, transfer in moved)
            outcomes = []
            for piece, transfer in moved:
                failure = transfer.error()
                if failure is None:
                    outcomes.append((piece, machine.outcomes(transfer)))
                else:
                    self._damaged(piece.record, str(failure))
        return outcomes

    def _settle(self, piece: _Piece, outcomes: bytes) -> None:
        """Note what is damaged."""
        found = damage.chunks(outcomes)
        told = [
            self._places.damage(piece.record, piece.number(place), piece.entries, place, outcome)
            for place, outcome in islice(found, self._room.chunks)
        ]
        self._result.damage += told
        self._result.damage_left_off += sum(1 for _ in found)
        self._room.chunks -= len(told)
        if piece.numbers is None:
            problem = piece.index_problem
            lost = damage.loss(self._point.id, piece.record, outcomes, problem, self._room.ranges)
            if lost is not None:
                self._result.losses.append(lost)
                self._room.ranges -= len(lost.lost)

    def _damaged(self, record: DatasetRecord, problem: str) -> None:
        self._result.damage.append(Damage(self._point.id, record.name, None, f"{self._point.id}: {problem}"))
