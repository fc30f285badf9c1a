"""A device that does not answer, on a user-space file system: it keeps its own transfer, and no other of its worker.

More requests than such a file system takes at once: whoever submits one more waits for it, io_uring's submission, too,
unless a thread of the kernel's does it (TZ_IO_ASIDE).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Device, until
from timezero._native.mover import BufferSpace, Mover, Sink, Source

MIB = 1 << 20
CHUNK = 256 << 10
SIZE = 32 * MIB
DEPTH = 40  # chunks of one worker; a user-space file system takes 12 requests at once

pytestmark = pytest.mark.timeout(120)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def mute(device: Callable[..., Device]) -> Device:
    device = device("mute", SIZE)
    device.image.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    return device


@pytest.fixture(params=["uring", "threads"])
def mover(request: pytest.FixtureRequest) -> Iterator[Mover]:
    space = BufferSpace(CHUNK, 2 * DEPTH, huge=False)
    mover = Mover(space, engine=request.param, workers=1, depth=DEPTH)
    yield mover
    mover.close()
    space.close()


def the_other_ends(mover: Mover, mute: Device, side: str) -> None:
    """Transfer 0 has a mute device at that side; 1 has none."""
    mute.silence()
    try:
        mover.start()
        until(lambda: mover.report(1)["done"], "the mute device keeps the other transfer", 20)
        assert mover.report(1)["error"] == 0
        until(lambda: mover.waiting()[0] > 0.5, "nobody waits for the mute device", 20)
        assert mover.waiting()[1:] == (0, side)
        other = {"source": "sink", "sink": "source"}[side]
        assert [mover.waits_for(*who) for who in ((0, side), (0, other), (1, side), (1, other))] == [True] + 3 * [False]
        assert not mover.report(0)["done"]
    finally:
        mute.answer()
    assert mover.wait(60)
    assert mover.report(0)["error"] == 0
    assert mover.waiting()[0] == 0


def test_a_source(mover: Mover, mute: Device, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(os.urandom(SIZE))
    with opened(mute.path) as first, opened(other) as second:
        mover.add(Source.file(first), Sink.null())
        mover.add(Source.file(second), Sink.null())
        the_other_ends(mover, mute, "source")


def test_a_target(mover: Mover, mute: Device, tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    source.write_bytes(os.urandom(SIZE))
    with opened(source) as data, opened(mute.path, os.O_RDWR) as first, opened(other, os.O_RDWR | os.O_CREAT) as second:
        mover.add(Source.file(data), Sink.image(first, SIZE, fresh=False))
        mover.add(Source.file(data), Sink.image(second, SIZE, fresh=True))
        the_other_ends(mover, mute, "sink")
    assert mute.image.read_bytes() == other.read_bytes() == source.read_bytes()
