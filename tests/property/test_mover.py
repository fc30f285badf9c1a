"""The mover against a plain model: bytes. Random sizes, data, zeros and holes; chunks that are no power of two."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from timezero._native.digest import digest_chunk
from timezero._native.mover import INDEX_ENTRY_BYTES, BufferSpace, Mover, PackWriter, Sink, Source

# (bytes to skip: a hole; length; a byte value: 0 is written zeros)
Piece = tuple[int, int, int]
PIECES = st.lists(
    st.tuples(st.integers(0, 300_000), st.integers(1, 200_000), st.sampled_from([0, 1, 255])),
    max_size=6,
)


def build(path: Path, pieces: Sequence[Piece], tail: int) -> bytes:
    """A file of the pieces, and what it must contain."""
    model = bytearray()
    with path.open("wb") as file:
        for skip, length, value in pieces:
            model += bytes(skip) + bytes([value]) * length
            file.seek(len(model) - length)
            file.write(bytes([value]) * length)
        model += bytes(tail)
        file.truncate(len(model))
    return bytes(model)


def transfer(space: BufferSpace, source: Source, sink: Sink, workers: int, engine: str) -> tuple[dict, bytes]:
    mover = Mover(space, workers=workers, depth=3, engine=engine)
    number = mover.add(source, sink, index=True)
    mover.start()
    assert mover.wait(60)
    report, index = mover.report(number), mover.index(number)
    mover.close()
    assert report["error"] == 0, report
    return report, index


def digests(index: bytes) -> list[bytes]:
    return [index[at + 24 : at + 40] for at in range(0, len(index), INDEX_ENTRY_BYTES)]


def check_index(index: bytes, model: bytes, chunk: int) -> None:
    """Each entry has the digest of its chunk; zero chunks, and only they, are stored nowhere."""
    assert len(index) == -(-len(model) // chunk) * INDEX_ENTRY_BYTES
    for number in range(len(index) // INDEX_ENTRY_BYTES):
        entry = index[number * INDEX_ENTRY_BYTES :][:INDEX_ENTRY_BYTES]
        content = model[number * chunk :][:chunk]
        digest, zero = digest_chunk(content)
        assert entry[24:40] == digest
        assert entry[16] == zero == (not any(content))
        assert int.from_bytes(entry[12:16], "little") == (0 if zero else len(content))


@settings(max_examples=60, deadline=None)
@given(
    pieces=PIECES,
    tail=st.integers(0, 150_000),
    chunk=st.sampled_from([4096, 3 * 4096, 65536, 5 * 65536]),
    workers=st.integers(1, 3),
    engine=st.sampled_from(["uring", "threads"]),
    fresh=st.booleans(),
)
def test_round_trip(pieces: list[Piece], tail: int, chunk: int, workers: int, engine: str, fresh: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        model = build(directory / "original", pieces, tail)
        (directory / "target").write_bytes(b"" if fresh else b"\xaa" * (len(model) // 2 + 77))
        space = BufferSpace(chunk, 5, huge=False)
        fds = [os.open(directory, os.O_RDONLY), os.open(directory / "original", os.O_RDONLY)]
        fds.append(os.open(directory / "target", os.O_RDWR))
        try:
            writer = PackWriter(fds[0], "p", max_bytes=3 * chunk)
            _, index = transfer(space, Source.file(fds[1]), Sink.packs(writer), workers, engine)
            packs = {n: os.open(directory / f"p-{n:04}.pack", os.O_RDONLY) for n in range(len(writer.finish()))}
            fds += packs.values()
            check_index(index, model, chunk)
            source = Source.index(index, len(model), chunk, packs)
            _, again = transfer(space, source, Sink.image(fds[2], len(model), fresh=fresh), workers, engine)
            # What was read back has the digests of what was stored; an image has no places in packs.
            assert digests(again) == digests(index)
            assert (directory / "target").read_bytes() == model
            assert space.stats()["frames_taken"] == 0
        finally:
            for fd in fds:
                os.close(fd)
