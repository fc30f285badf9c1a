"""What jobs keep of dense datasets, and of damaged ones, in bytes a chunk (docs/memory.md)."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sanitized import not_with_asan
from timezero._native.mover import OUTCOMES
from timezero.jobs import damage, mapfile
from timezero.jobs.damage import DAMAGE_LIMIT, Losses
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter
from timezero.jobs.sampling import Sampler
from timezero.jobs.verify import VerifyResult, _Piece, _Room, _Verification
from timezero.repository import DatasetRecord, index
from timezero.repository.index import ENTRY_BYTES, IndexHeader

CHUNKS = 100_000
MIB = CHUNK = 1 << 20
ENTRY = struct.Struct("<QIIBB6x16sQ")
SLACK = 1 << 18  # bytes; of what does not grow
ALTERED = OUTCOMES["altered"]


def record(name: str = "disk", chunks: int = CHUNKS) -> DatasetRecord:
    return DatasetRecord(
        name=name,
        source="/disk",
        method_requested="at-rest",
        method_used="at-rest",
        size=chunks * CHUNK,
        chunk_size=CHUNK,
        digest="0" * 64,
    )


def verification(entries: bytes = b"", times: int = 1, sampler: Sampler | None = None) -> _Verification:
    """Of a recovery point whose datasets all have these entries, so many times."""

    def whole(_: DatasetRecord) -> tuple[bytes, None]:
        return entries * times, None

    point: Any = SimpleNamespace(id="point", manifest=SimpleNamespace(packs=()), entries_as_they_are=whole)
    return _Verification(point, MoverOptions(), Meter(None, 0), VerifyResult(), sampler, _Room())


@contextmanager
def most() -> Iterator[list[int]]:
    """The most that was taken inside of it beyond what was there before, in bytes."""
    taken: list[int] = []
    tracemalloc.start()
    try:
        yield taken
        taken.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


# ---- samples ----


@pytest.mark.parametrize("percent", [0.1, 1, 5, 100])
def test_a_sample_of_a_dense_dataset(percent: float) -> None:
    """All of its index, and for each chunk that is chosen its number and its entry, twice with the mover's copy."""
    entry = ENTRY.pack(4096, 0, CHUNK, 0, 0, bytes(16), 0)
    assert len(entry) == ENTRY_BYTES
    one = verification(entry, CHUNKS, Sampler(percent, 3))
    with most() as taken:
        piece = one._piece(record())
    assert piece is not None and piece.numbers is not None
    assert len(piece.numbers) == pytest.approx(CHUNKS * percent / 100, abs=1)
    assert piece.entries == entry * len(piece.numbers)
    # An eighth more of what is chosen while it is gathered.
    bound = CHUNKS * ENTRY_BYTES + len(piece.numbers) * (8 + ENTRY_BYTES * 9 // 8) + SLACK
    assert taken[0] <= bound, f"{(taken[0] - bound) / CHUNKS:.1f} bytes a chunk beyond it"
    with most() as taken:
        assert piece.source({}).size == piece.size  # a pack that is missing is told of each chunk
    assert taken[0] <= SLACK


def test_what_is_chosen_is_read_in_its_place() -> None:
    """Entries go with their numbers, past zeros, which are nowhere."""
    stored = [ENTRY.pack(4096 * number, 0, CHUNK, 0, 0, bytes(16), 0) for number in range(3)]
    zero = ENTRY.pack(0, 0, 0, 1, 0, bytes(16), 0)
    one = verification(stored[0] + zero + stored[1] + zero + stored[2], sampler=Sampler(100, 1))
    piece = one._piece(record(chunks=5))
    assert piece is not None and piece.numbers is not None
    assert (list(piece.numbers), piece.entries) == ([0, 2, 4], b"".join(stored))


# ---- damaged indexes ----


def test_a_damaged_index(tmp_path: Path) -> None:
    """What is left of one takes no more, while it is looked at, than an index and its copy."""
    header = IndexHeader(CHUNK, CHUNKS * CHUNK)
    places = [*range(1, CHUNKS - 1), CHUNKS // 2, CHUNKS // 3]  # the last two are another's as well
    with (tmp_path / "index").open("wb") as file:
        file.write(header.encode())
        file.writelines(ENTRY.pack(4096 * place, 1 + place % 2, CHUNK, 0, 0, bytes(16), 0) for place in places)
    index._remove_doubles(bytearray(ENTRY_BYTES))  # numpy itself is of what does not grow
    with most() as taken:
        entries = index.read_as_is(str(tmp_path / "index"), 0, header)
    assert taken[0] <= 2 * CHUNKS * ENTRY_BYTES + 2 * MIB  # a piece of what is read
    left = [number for number, (_, _, length, *_) in enumerate(ENTRY.iter_unpack(entries)) if length]
    lost = {CHUNKS // 2 - 1, CHUNKS // 3 - 1, CHUNKS - 2, CHUNKS - 1}
    assert left == [number for number in range(CHUNKS) if number not in lost]


# ---- damage ----

#: Every other chunk: as many ranges as there can be.
HALF = bytes([ALTERED, OUTCOMES["stored"]]) * (CHUNKS // 2)
#: Bytes, of what is told of one damaged chunk with the range that it is; of a range.
TOLD, RANGE = 1000, 200


def test_a_verification_of_what_is_damaged_all_over() -> None:
    """Over all datasets together, no more than so much is told one by one; what is more is counted."""
    one = verification()
    entries = ENTRY.pack(4096, 0, CHUNK, 0, 0, bytes(16), 0) * CHUNKS
    with most() as taken:
        for name in ("a", "b"):
            one._settle(_Piece(record(name), entries, None, None), HALF)
    assert taken[0] <= DAMAGE_LIMIT * TOLD + SLACK
    result = one._result
    assert (len(result.damage), result.damage_left_off) == (DAMAGE_LIMIT, CHUNKS - DAMAGE_LIMIT)
    assert [(len(loss.lost), loss.lost_left_off) for loss in result.losses] == [
        (DAMAGE_LIMIT, CHUNKS // 2 - DAMAGE_LIMIT),
        (0, CHUNKS // 2),
    ]
    assert {(loss.chunks, loss.restorable) for loss in result.losses} == {(CHUNKS // 2, CHUNKS // 2 * CHUNK)}
    assert not result.to_json()["intact"]
    assert result.to_json()["losses"][1]["lost_left_off"] == CHUNKS // 2


def test_what_is_salvaged_of_what_is_damaged_all_over() -> None:
    """The same of a restore."""
    losses = Losses("point")
    with most() as taken:
        assert all(losses.note(record(name), HALF) for name in ("a", "b"))
    assert taken[0] <= DAMAGE_LIMIT * RANGE + SLACK
    assert sum(len(loss.lost) for loss in losses.found.values()) == DAMAGE_LIMIT
    assert sum(loss.lost_left_off for loss in losses.found.values()) == CHUNKS - DAMAGE_LIMIT


def test_ranges_are_merged() -> None:
    """A dataset that is damaged in one piece is one range, however long."""
    lost = damage.loss("point", record(), bytes([ALTERED]) * CHUNKS)
    assert lost is not None
    assert (lost.lost, lost.lost_left_off, lost.chunks) == (((0, CHUNKS * CHUNK),), 0, CHUNKS)


def test_a_map_of_what_is_damaged_all_over(tmp_path: Path) -> None:
    """It has everything, and is written as it comes."""
    with most() as taken:
        mapfile.write(str(tmp_path / "map"), record(), HALF)
    assert taken[0] <= SLACK
    with (tmp_path / "map").open() as file:
        assert sum(line.endswith("-\n") for line in file) == CHUNKS // 2


# ---- files on a served volume ----

#: A session of a volume of 8 TiB, and a file on it of pairs of extents, a track for each pair. Written out: how much
#: more the process had in memory at its worst moment than before the file came, in bytes.
FILE = """
import sys
import numpy as np
from timezero._native.mover import BufferSpace, Mover, SessionView, Sink, Source
from timezero._native.subsystem import Reactor, Session, Volume

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

path, pairs, track = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
reactor = Reactor("threads")
session = Session(Volume(reactor, path), track_size=track, memory_bytes=64 << 20, domain=True)
view = SessionView(session.handles())
tracks = np.arange(pairs, dtype=np.uint64) * np.uint64(view.size // track // pairs)
physical = np.repeat(tracks * np.uint64(track), 2)
physical[1::2] += np.uint64(8192)
logical = np.arange(2 * pairs, dtype=np.uint64) * np.uint64(8192)
length = np.full(2 * pairs, 4096, np.uint64)
mover = Mover(BufferSpace(1 << 20, 4), engine="threads")
before = status("VmRSS:")
mover.add(Source.extents(view, 2 * pairs * 8192, logical, physical, length), Sink.null())
print(status("VmHWM:") - before)
"""


@not_with_asan("it takes memory of its own")
def test_a_file_of_many_extents_that_share_tracks(tmp_path: Path) -> None:
    """Two bits a track of the volume; for each track that is shared, and each extent, so much (docs/memory.md)."""
    size, track = 8 << 40, 256 << 10
    pairs = 525_000  # just past the moment when the table of shared tracks grows: its worst
    with (tmp_path / "volume").open("wb") as file:
        file.truncate(size)
    command = [sys.executable, "-c", FILE, tmp_path / "volume", str(pairs), str(track)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    taken, tracks = int(done.stdout), size // track
    # The extents' columns were there before: 24 bytes of the 104.
    bound = tracks // 4 + pairs * 96 + 2 * pairs * (104 - 24)
    assert tracks // 4 + pairs * 64 < taken <= bound, f"{taken} bytes, and {bound} are stated"
