"""What is damaged of stored datasets, and what is left of them.

The mover tells how each chunk ended, a byte a chunk (enum tz_outcome); here that becomes ranges of bytes, places in
packs, and words.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from timezero._native.mover import OUTCOMES
from timezero.repository import DatasetRecord, PackRecord
from timezero.repository.index import ENTRY_BYTES
from timezero.units import format_size

_PROBLEMS = {
    OUTCOMES["altered"]: "the stored data does not match its digest",
    OUTCOMES["unreadable"]: "the stored data cannot be read",
    OUTCOMES["cut"]: "its pack ends before it",
    OUTCOMES["no pack"]: "its pack is missing",
    OUTCOMES["bad entry"]: "its index entry is damaged",
}
#: Damaged chunks that a job tells one by one, over all datasets, and ranges that are lost; what is beyond is counted.
#: One takes some hundred bytes, more than the chunk's index entry.
DAMAGE_LIMIT = 10_000
_DAMAGED = re.compile(rb"[" + bytes(_PROBLEMS) + rb"]+")
#: Of an index entry: offset, pack.
_PLACE = struct.Struct("<QI")


class Damage(NamedTuple):
    """Something that is not as it was written.

    dataset: None for what concerns a whole recovery point. offset, length: bytes of the dataset, None when it is not a
    chunk that is damaged. pack, pack_offset: where that chunk lies, as far as it is known.
    """

    point: str
    dataset: str | None
    offset: int | None
    problem: str
    length: int | None = None
    pack: str | None = None
    pack_offset: int | None = None


class Loss(NamedTuple):
    """What of a damaged dataset is lost, and what can still be restored.

    size, restorable: bytes. chunks: damaged ones. lost: (offset, length) in bytes, in order, as long as they go on;
    lost_left_off: how many more there are, of which only the bytes are counted (DAMAGE_LIMIT).
    index_problem: what is wrong with its index; then chunks match their digests, but that they are in their places is
    not proven.
    """

    point: str
    dataset: str
    size: int
    restorable: int
    chunks: int
    lost: tuple[tuple[int, int], ...]
    index_problem: str | None = None
    lost_left_off: int = 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self._asdict(), "lost": [{"offset": offset, "length": length} for offset, length in self.lost]}

    def __str__(self) -> str:
        gone = self.size - self.restorable
        text = f"{self.dataset}: {format_size(gone)} of {format_size(self.size)} lost, in {self.chunks} chunks"
        return f"{text}; its index is damaged" if self.index_problem else text


def chunks(outcomes: bytes) -> Iterator[tuple[int, int]]:
    """(number, outcome) of the damaged chunks."""
    for run in _DAMAGED.finditer(outcomes):
        yield from enumerate(run[0], run.start())


def loss(
    point: str, record: DatasetRecord, outcomes: bytes, index_problem: str | None = None, most: int = DAMAGE_LIMIT
) -> Loss | None:
    """What is lost of a dataset all of whose chunks were looked at; None when it is whole and so is its index.

    most: ranges that are told.
    """
    lost: list[tuple[int, int]] = []
    count = left_off = gone = 0
    for run in _DAMAGED.finditer(outcomes):
        begin, end = run.start() * record.chunk_size, min(run.end() * record.chunk_size, record.size)
        count += run.end() - run.start()
        gone += end - begin
        if len(lost) < most:
            lost.append((begin, end - begin))
        else:
            left_off += 1
    if not count and index_problem is None:
        return None
    return Loss(point, record.name, record.size, record.size - gone, count, tuple(lost), index_problem, left_off)


def nothing_left(point: str, record: DatasetRecord, index_problem: str) -> Loss:
    """The loss of all of a dataset, because its index is gone."""
    everything = ((0, record.size),) if record.size else ()
    return Loss(point, record.name, record.size, 0, record.header.chunks, everything, index_problem)


class Losses:
    """What was found damaged of what is salvaged. index_problems, found: by dataset."""

    def __init__(self, point: str) -> None:
        self._point = point
        self.index_problems: dict[str, str] = {}
        self.found: dict[str, Loss] = {}
        self._room = DAMAGE_LIMIT

    def note(self, record: DatasetRecord, outcomes: bytes) -> bool:
        """Take down how the chunks of a dataset ended. Is anything of it damaged?"""
        lost = loss(self._point, record, outcomes, self.index_problems.get(record.name), self._room)
        if lost is not None:
            self.found[record.name] = lost
            self._room -= len(lost.lost)
        return lost is not None


class Places:
    """Where chunks lie, for reports."""

    def __init__(self, point: str, packs: Iterable[PackRecord]) -> None:
        self._point = point
        self._names = {pack.number: pack.name for pack in packs}

    def damage(self, record: DatasetRecord, number: int, entries: bytes, place: int, outcome: int) -> Damage:
        """The report of chunk `number`, whose entry is that at `place` of `entries`."""
        offset = number * record.chunk_size
        where, pack = _PLACE.unpack_from(entries, place * ENTRY_BYTES)
        known = outcome != OUTCOMES["bad entry"]
        return Damage(
            self._point,
            record.name,
            offset,
            f"{self._point}: {record.name}: damaged at byte {offset}: {_PROBLEMS[outcome]}",
            min(record.chunk_size, record.size - offset),
            self._names.get(pack) if known else None,
            where if known else None,
        )
