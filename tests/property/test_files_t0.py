"""Files in random extents on a small served volume, backed up while it is written: each is its T0 content.

Everything is real but the file system: reactor, gate, NBD connection, session over a domain, mover. The model is bytes.
"""

from __future__ import annotations

import os
import random
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from proof.nbd import Nbd
from timezero._native.bitmap import Bitmap
from timezero._native.extents import ExtentMap
from timezero._native.mover import BufferSpace, Mover, SessionView, Sink, Source
from timezero._native.subsystem import Reactor, Session, Suspension, Volume

BLOCK = 4096
BLOCKS = 96
SIZE = BLOCKS * BLOCK
CHUNK = 32 * 1024

# (blocks of hole before it, first block on the volume, blocks)
RUN = st.tuples(st.integers(0, 5), st.integers(0, BLOCKS - 1), st.integers(1, 12))
# runs, bytes that the size ends before the last run's end (negative: a hole at the end)
FILE = st.tuples(st.lists(RUN, max_size=12), st.integers(-20_000, BLOCK))
# kind, block, blocks
UPDATE = st.tuples(st.sampled_from(["write", "write", "zero", "trim"]), st.integers(0, BLOCKS - 1), st.integers(1, 8))


@dataclass
class File:
    size: int
    logical: np.ndarray
    physical: np.ndarray
    length: np.ndarray

    def content(self, volume: bytes) -> bytes:
        content = bytearray(self.size)
        for logical, physical, length in zip(self.logical, self.physical, self.length, strict=True):
            logical, physical = int(logical), int(physical)
            length = max(0, min(int(length), self.size - logical))
            content[logical : logical + length] = volume[physical : physical + length]
        return bytes(content)


def lay(runs: list[tuple[int, int, int]], tail: int, shift: int) -> File:
    """Runs one after the other in the file, wherever they are on the volume; `shift`: of a partition, bytes."""
    extents, at = [], 0
    for hole, first, blocks in runs:
        at += hole * BLOCK
        length = min(blocks, BLOCKS - first - 1) * BLOCK
        if length:
            extents.append((at, first * BLOCK + shift, length))
            at += length
    columns = np.array(extents, dtype=np.uint64).reshape(-1, 3).T.copy()
    return File(max(0, at - tail), *columns)


def update(nbd: Nbd, kind: str, block: int, blocks: int, seed: int) -> None:
    length = min(blocks, BLOCKS - block) * BLOCK
    if kind == "write":
        nbd.write(block * BLOCK, random.Random(seed).randbytes(length))
    elif kind == "zero":
        nbd.zero(block * BLOCK, length)
    else:
        nbd.trim(block * BLOCK, length)


def designate(session: Session, files: list[File], track: int) -> None:
    tracks = Bitmap(SIZE // track)
    for file in files:
        ExtentMap(file.logical, file.physical, file.length).tracks(track, tracks)
    os.pwrite(session.handles()["domain_fd"], tracks.words, 0)
    session.set_domain()


@settings(max_examples=80, deadline=None)
@given(
    files=st.lists(FILE, min_size=1, max_size=5),
    early=st.lists(UPDATE, max_size=10),
    late=st.lists(UPDATE, max_size=40),
    track=st.sampled_from([4096, 16384, 32768]),
    shift=st.sampled_from([0, 0, 512, 1000]),
    workers=st.integers(1, 2),
    depth=st.integers(1, 4),
    opportunistic=st.booleans(),
    file_tier=st.booleans(),
    engine=st.sampled_from(["uring", "threads"]),
    whole=st.booleans(),
)
def test_every_file_is_t0(
    files, early, late, track, shift, workers, depth, opportunistic, file_tier, engine, whole
) -> None:
    laid = [lay(runs, tail, shift) for runs, tail in files]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, ExitStack() as stack:
        path, t0 = Path(name) / "volume", random.Random(1).randbytes(SIZE)
        path.write_bytes(t0)
        reactor = Reactor(engine)
        stack.callback(reactor.close)
        volume = Volume(reactor, str(path))
        stack.callback(volume.close)
        ours, theirs = socket.socketpair()
        volume.adopt(theirs.detach(), structured=False)
        nbd = stack.enter_context(Nbd(ours))
        tier = {"file_fd": os.open(name, os.O_TMPFILE | os.O_RDWR), "file_bytes": 2 * SIZE} if file_tier else {}
        session = Session(
            volume, track_size=track, memory_bytes=8 * track + (160 << 10 if file_tier else 2 << 20),
            domain=not whole, **tier,
        )  # fmt: skip
        stack.callback(session.close)
        if not whole:
            designate(session, laid, track)
        Suspension([session]).run(20_000_000)
        view = SessionView(session.handles())
        space = BufferSpace(CHUNK, 16, huge=False)
        stack.callback(space.close)
        mover = Mover(space, workers=workers, depth=depth, rate=8 << 20, engine=engine, opportunistic=opportunistic)
        stack.callback(mover.close)
        targets = []
        for file in [*laid, None] if whole else laid:
            targets.append(os.memfd_create("target"))
            stack.callback(os.close, targets[-1])
            if file is None:
                source = Source.session(view)
            else:
                source = Source.extents(view, file.size, file.logical, file.physical, file.length)
            size = source.size
            mover.add(source, Sink.image(targets[-1], size, fresh=True))
        view.close()
        for seed, item in enumerate(early):
            update(nbd, *item, seed)
        mover.start()
        for seed, item in enumerate(late):
            update(nbd, *item, 1000 + seed)
        assert mover.wait(60)
        reports = [mover.report(number) for number in range(len(targets))]
        assert not any(report["error"] for report in reports), reports
        final = session.end()
        assert final["state"] == "ended", final
        assert final["used_slots"] == 0 or not whole, final
        for file, target in zip(laid, targets, strict=False):
            assert os.pread(target, file.size + 1, 0) == file.content(t0)
        if whole:
            assert os.pread(targets[-1], SIZE + 1, 0) == t0
