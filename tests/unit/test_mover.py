"""The data mover through its Cython surface: copies, errors that say what and where, closing in any order."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from timezero._native.mover import CHUNK_DEFAULT, INDEX_ENTRY_BYTES, BufferSpace, Mover, PackWriter, Sink, Source

CHUNK = 65536
SIZE = 20 * CHUNK + 4097
WAIT = 60.0


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def space() -> Iterator[BufferSpace]:
    """Six frames, all of which have come back when the test ends."""
    space = BufferSpace(CHUNK, 6, huge=False)
    yield space
    stats = space.stats()
    assert (stats["frames_taken"], stats["areas"], stats["areas_waiting"]) == (0, 0, 0)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Data, then a hole, then data up to an odd size."""
    path = tmp_path / "original"
    generator = random.Random(1)
    with path.open("wb") as file:
        file.write(generator.randbytes(5 * CHUNK + 123))
        file.seek(15 * CHUNK)
        file.write(generator.randbytes(SIZE - 15 * CHUNK))
    return path


def run(space: BufferSpace, source: Source, sink: Sink, *, index: bool = False, engine: str = "auto", workers: int = 2):
    """One transfer to its end: its report and its index."""
    mover = Mover(space, engine=engine, workers=workers)
    try:
        transfer = mover.add(source, sink, index=index)
        mover.start()
        assert mover.wait(WAIT)
        return mover.report(transfer), mover.index(transfer) if index else b""
    finally:
        mover.close()


def store(space: BufferSpace, original: Path, prefix: str = "point") -> tuple[bytes, list[int]]:
    """Store a file in packs of a few chunks beside it: the index, and the sizes of the packs."""
    with opened(original.parent, os.O_RDONLY | os.O_DIRECTORY) as directory, opened(original) as fd:
        writer = PackWriter(directory, prefix, max_bytes=4 * CHUNK)
        report, index = run(space, Source.file(fd), Sink.packs(writer), index=True)
        assert report["error"] == 0
        sizes = writer.finish()
        writer.close()
    return index, sizes


@contextmanager
def packs(directory: Path, count: int, prefix: str = "point") -> Iterator[dict[int, int]]:
    fds = {n: os.open(directory / f"{prefix}-{n:04}.pack", os.O_RDWR) for n in range(count)}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def test_constants() -> None:
    assert CHUNK_DEFAULT == 1 << 20
    assert INDEX_ENTRY_BYTES == 48


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("workers", [1, 3])
def test_file_to_image(space: BufferSpace, original: Path, engine: str, workers: int) -> None:
    target = original.with_name("target")
    with opened(original) as source, opened(target, os.O_RDWR | os.O_CREAT) as sink:
        mover = Mover(space, engine=engine, workers=workers, depth=4)
        assert mover.engine == engine
        transfer = mover.add(Source.file(source), Sink.image(sink, SIZE, fresh=True), index=True)
        assert not mover.wait(0)
        mover.start()
        assert mover.wait(WAIT)
        mover.sync(transfer)
        report = mover.report(transfer)
        assert len(mover.index(transfer)) == report["chunks"] * INDEX_ENTRY_BYTES
        mover.close()
        mover.close()
    assert target.read_bytes() == original.read_bytes()
    assert report["done"] is True
    assert (report["error"], report["side"]) == (0, "")
    assert (report["size"], report["bytes_done"], report["chunks"]) == (SIZE, SIZE, 21)
    assert report["chunks_zero"] == 9
    assert 0 < report["started_ns"] <= report["ended_ns"]


@pytest.mark.parametrize("buffered", [False, True])
def test_used_target_gets_zeros(space: BufferSpace, original: Path, buffered: bool) -> None:
    target = original.with_name("target")
    target.write_bytes(b"\xee" * (SIZE + 100000))
    with opened(original) as source, opened(target, os.O_RDWR) as sink:
        report, _ = run(space, Source.file(source), Sink.image(sink, SIZE, fresh=False, buffered=buffered))
    assert report["error"] == 0
    assert target.read_bytes() == original.read_bytes()


def test_file_to_stream(space: BufferSpace, original: Path) -> None:
    """The reader is a Python thread: that it gets on shows that wait releases the GIL."""
    read_end, write_end = os.pipe()
    got = bytearray()

    def reader() -> None:
        with os.fdopen(read_end, "rb") as pipe:
            while piece := pipe.read(10000):
                got.extend(piece)

    thread = threading.Thread(target=reader)
    thread.start()
    with opened(original) as source:
        sink = Sink.stream(write_end)
        os.close(write_end)
        report, _ = run(space, Source.file(source), sink, workers=3)
    thread.join(WAIT)
    assert report["error"] == 0
    assert bytes(got) == original.read_bytes()


def test_packs_and_back(space: BufferSpace, original: Path) -> None:
    index, sizes = store(space, original)
    assert [size <= 4 * CHUNK for size in sizes] == [True] * len(sizes)
    assert [(original.parent / f"point-{n:04}.pack").stat().st_size for n in range(len(sizes))] == sizes
    target = original.with_name("target")
    with packs(original.parent, len(sizes)) as fds, opened(target, os.O_RDWR | os.O_CREAT) as sink:
        source = Source.index(index, SIZE, CHUNK, fds)
        assert source.size == SIZE
        report, _ = run(space, source, Sink.image(sink, SIZE, fresh=True))
    assert report["error"] == 0
    assert target.read_bytes() == original.read_bytes()


def test_damaged_pack_is_named_by_its_offset(space: BufferSpace, original: Path) -> None:
    index, sizes = store(space, original)
    chunk = 16
    entry = index[chunk * INDEX_ENTRY_BYTES :][:INDEX_ENTRY_BYTES]
    offset, pack = int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:12], "little")
    with packs(original.parent, len(sizes)) as fds:
        assert run(space, Source.index(index, SIZE, CHUNK, fds), Sink.null())[0]["error"] == 0
        byte = os.pread(fds[pack], 1, offset + 5)
        os.pwrite(fds[pack], bytes([byte[0] ^ 1]), offset + 5)
        report, _ = run(space, Source.index(index, SIZE, CHUNK, fds), Sink.null())
    assert (report["error"], report["side"], report["error_offset"]) == (-errno.EBADMSG, "source", chunk * CHUNK)


def test_impossible_index_is_refused(space: BufferSpace, original: Path) -> None:
    index, sizes = store(space, original)
    with packs(original.parent, len(sizes)) as fds:
        for entries, known in ((index[:-1], fds), (index[:-INDEX_ENTRY_BYTES], fds), (index, {}), (b"", fds)):
            with pytest.raises(OSError, match="index") as refused:
                Source.index(entries, SIZE, CHUNK, known)
            assert refused.value.errno == errno.EBADMSG
    assert Source.index(b"", 0, CHUNK, {}).size == 0


def test_existing_pack_is_left_alone(space: BufferSpace, original: Path) -> None:
    (original.parent / "point-0000.pack").write_bytes(b"precious")
    with opened(original.parent, os.O_RDONLY | os.O_DIRECTORY) as directory, opened(original) as fd:
        writer = PackWriter(directory, "point")
        report, _ = run(space, Source.file(fd), Sink.packs(writer))
        assert (report["error"], report["side"]) == (-errno.EEXIST, "sink")
        with pytest.raises(FileExistsError):
            writer.finish()
    assert (original.parent / "point-0000.pack").read_bytes() == b"precious"


def test_cancel_gives_everything_back(space: BufferSpace, original: Path) -> None:
    read_end, write_end = os.pipe()
    with opened(original) as fd:
        mover = Mover(space, workers=2)
        for _ in range(4):
            mover.add(Source.file(fd), Sink.stream(write_end))
        mover.start()
        assert not mover.wait(0.02)
        mover.cancel()
        assert mover.wait(WAIT)
        assert [mover.report(n)["error"] for n in range(4)] == [-errno.ECANCELED] * 4
        assert space.stats()["frames_taken"] == 0
        with pytest.raises(OSError, match="make the target durable"):
            mover.sync(0)
        mover.close()
    os.close(read_end)
    os.close(write_end)


def test_closed_in_any_order(original: Path) -> None:
    """A mover at work keeps what it needs, whatever is closed or dropped before it."""
    read_end, write_end = os.pipe()
    with opened(original) as fd, opened(original.parent, os.O_RDONLY | os.O_DIRECTORY) as directory:
        space = BufferSpace(CHUNK, 4)
        writer = PackWriter(directory, "point")
        mover = Mover(space)
        mover.add(Source.file(fd), Sink.packs(writer), index=True)
        mover.add(Source.file(fd), Sink.stream(write_end))
        mover.start()
        writer.close()
        space.close()
        del writer, space
        gc.collect()
        assert not mover.wait(0.01)
        mover.close()
        with pytest.raises(ValueError, match="closed"):
            mover.wait(0)
    os.close(read_end)
    os.close(write_end)


def test_misuse_is_refused(space: BufferSpace, original: Path) -> None:
    with opened(original) as fd:
        source, sink = Source.file(fd), Sink.null()
        mover = Mover(space)
        mover.add(source, sink)
        with pytest.raises(ValueError, match="used up"):
            mover.add(source, Sink.null())
        with pytest.raises(ValueError, match="used up"):
            _ = source.size
        for number in (-1, 1):
            with pytest.raises(IndexError):
                mover.report(number)
        with pytest.raises(ValueError, match="keeps no index"):
            mover.index(0)
        mover.start()
        with pytest.raises(OSError, match="start") as again:
            mover.start()
        assert again.value.errno == errno.EBUSY
        mover.close()
        with pytest.raises(ValueError, match="not one of"):
            Mover(space, engine="steam")
        with pytest.raises(OSError, match="source of"):
            Source.file(fd, SIZE + 1)
    for kind in (Source, Sink):
        with pytest.raises(TypeError):
            kind()
    with pytest.raises(OSError, match="buffer space"):
        BufferSpace(1000, 4)


def test_bad_descriptors_are_not_leaked(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with opened(tmp_path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        for attempt in (lambda: Source.file(fd), lambda: Sink.image(fd, 1, fresh=True)):
            with pytest.raises(OSError):
                attempt()
        names = ("owned_fd", "shared_fd", "drain_fd", "volume_fd")
        with pytest.raises(OSError, match="session's shared memory") as refused:
            Source.session({**dict.fromkeys(names, fd), "file_fd": -1})
        assert refused.value.errno == errno.EPROTO
        with pytest.raises(KeyError):
            Source.session({"owned_fd": fd})
    assert sorted(os.listdir("/proc/self/fd")) == before
