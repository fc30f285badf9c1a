"""Files by hand-made extents on a volume of a real `timezero serve`, while it is written through NBD."""

import os
import random
import threading
import time

import numpy as np
import pytest

from proof.nbd import Nbd
from timezero import session
from timezero._native.bitmap import Bitmap
from timezero._native.extents import ExtentMap
from timezero._native.mover import BufferSpace, Mover, SessionView, Sink, Source
from timezero.control import Client, ControlError

MIB = 1 << 20
BLOCK = 4096
TRACK = 16384
SIZE = 24 * MIB
DEADLINE_US = 20_000_000


class Writer(threading.Thread):
    """Writes random blocks through NBD until it is stopped."""

    def __init__(self, server, name, seed):
        super().__init__()
        self.nbd, self.random = Nbd.connect(server.nbd_socket, name), random.Random(seed)
        self.going, self.writes, self.error = True, 0, None

    def run(self):
        try:
            while self.going:
                blocks = self.random.randint(1, 8)
                at = self.random.randrange(SIZE // BLOCK - blocks)
                self.nbd.write(at * BLOCK, self.random.randbytes(blocks * BLOCK))
                self.writes += 1
        except Exception as error:
            self.error = error
        self.nbd.close()

    def stop(self):
        self.going = False
        self.join(60)
        assert self.error is None and not self.is_alive()


def deal(files, seed):
    """The volume's blocks in short runs, in random order, to `files` files: (size, logical, physical, length) each."""
    source, runs = random.Random(seed), []
    at = 0
    while at < SIZE // BLOCK:
        blocks = min(source.randint(1, 40), SIZE // BLOCK - at)
        runs.append((at, blocks))
        at += blocks
    source.shuffle(runs)
    laid = []
    for number in range(files):
        logical, physical, length, end = [], [], [], 0
        for first, blocks in runs[number :: files + 1]:  # a share is nobody's
            end += source.choice([0, 0, 3]) * BLOCK
            logical.append(end)
            physical.append(first * BLOCK)
            length.append(blocks * BLOCK)
            end += blocks * BLOCK
        columns = (np.array(column, dtype=np.uint64) for column in (logical, physical, length))
        laid.append((end - source.randrange(BLOCK), *columns))
    return laid


def content(volume, size, logical, physical, length):
    out = bytearray(size)
    for to, start, count in zip(logical.tolist(), physical.tolist(), length.tolist(), strict=True):
        count = min(count, size - to)
        out[to : to + count] = volume[start : start + count]
    return bytes(out)


def designate(group, part, laid, track):
    tracks = Bitmap(-(-part.size // track))
    for _, logical, physical, length in laid:
        ExtentMap(logical, physical, length).tracks(track, tracks)
    assert os.pwrite(part.domain_fd, tracks.words, 0) == len(tracks.words) * 8
    group.set_domain(part.volume)
    return tracks


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "db.img"
    path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    return path


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("tier", [False, True])
def test_files_are_t0_while_their_volume_is_written(serve, image, tmp_path, engine, tier):
    options = {}
    if tier:
        (tmp_path / "tier").mkdir()
        options = {"sidefile_path": tmp_path / "tier", "sidefile_file": "64M"}
    server = serve({"db": image}, engine=engine, **options)
    laid = deal(7, 5)
    sizes = {"memory_bytes": 2 * MIB, "file_bytes": 48 * MIB} if tier else {"memory_bytes": 64 * MIB}
    with session.prepare(server.control, ["db"], track_size=TRACK, domain=["db"], **sizes) as group:
        [part] = group.parts
        with pytest.raises(ControlError, match="never set"):
            group.suspend(DEADLINE_US)
        tracks = designate(group, part, laid, TRACK)
        assert 0 < tracks.count() < len(tracks)
        writers = [Writer(server, "db", seed) for seed in (1, 2)]
        t0 = image.read_bytes()  # nobody writes yet
        group.suspend(DEADLINE_US)
        for writer in writers:
            writer.start()
        time.sleep(0.1)
        view, space = SessionView(part.handles), BufferSpace(256 * 1024, 24)
        assert (view.size, view.track_size) == (SIZE, TRACK)
        mover = Mover(space, engine=engine, workers=2, rate=24 * MIB)
        targets = []
        for number, (size, logical, physical, length) in enumerate(laid):
            targets.append(tmp_path / f"file-{number}")
            with targets[-1].open("w+b") as file:
                sink = Sink.image(file.fileno(), size, fresh=True)
            mover.add(Source.extents(view, size, logical, physical, length), sink)
        view.close()
        mover.start()
        assert mover.wait(60)
        reports = [mover.report(number) for number in range(len(laid))]
        for writer in writers:
            writer.stop()
        mover.close()
        space.close()
        assert not any(report["error"] for report in reports), reports
        [final] = group.end()
    assert final["intercepted"] > 50
    assert final["used_slots"] == 0  # what nobody needs is not in the domain, and everybody had his part
    assert bool(final["file_images"]) == tier
    assert sum(report["tracks_from_sidefile"] for report in reports) > 50
    for target, (size, *columns) in zip(targets, laid, strict=True):
        assert target.read_bytes() == content(t0, size, *columns)
    assert image.read_bytes() != t0


def test_tracks_outside_the_domain_are_not_intercepted(serve, image):
    server = serve({"db": image})
    with session.prepare(server.control, ["db"], track_size=TRACK, domain=["db"]) as group:
        [part] = group.parts
        os.pwrite(part.domain_fd, b"\x02", 0)
        group.set_domain("db")
        group.suspend(DEADLINE_US)
        with Nbd.connect(server.nbd_socket, "db") as nbd:
            nbd.write(0, b"x" * TRACK)
            nbd.write(2 * TRACK, b"x" * 20 * TRACK)
            assert group.report()[0]["images"] == 0
            nbd.write(2 * TRACK - 1, b"xy")
            assert group.report()[0]["images"] == 1
        with pytest.raises(ControlError) as error:
            group.set_domain("db")
        assert error.value.code == "bad-request"
        group.end()


def test_bad_requests(serve, image, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(bytes(MIB))
    server = serve({"db": image, "log": other})
    with Client(server.control) as client:

        def refused(op, **fields):
            with pytest.raises(ControlError) as error:
                client.call_for_descriptors(op, timeout=60, session="s", **fields)
            return error.value.code

        for domain in ("db", [1], ["db", "db"], ["log"], None, {"db": 1}):
            assert refused("prepare", volumes=["db"], domain=domain) == "bad-request"
        assert refused("domain", volume="db") == "unknown-session"
        reply, descriptors = client.call_for_descriptors(
            "prepare", timeout=60, session="s", volumes=["db", "log"], domain=["log"]
        )
        assert len(descriptors) == 9
        assert [part["handles"]["domain_fd"] >= 0 for part in reply["parts"]] == [False, True]
        for volume in ("db", "nobody", None, 3, ["log"]):
            assert refused("domain", volume=volume) == "bad-request"
        assert refused("suspend", deadline_us=DEADLINE_US) == "bad-request"
        client.call("close", session="s", deadline_us=DEADLINE_US)
        client.call("domain", session="s", volume="log")  # late, but not too late
        client.call("install", session="s")
        assert refused("domain", volume="log") == "bad-request"
        client.call("open", session="s")
        assert {part["state"] for part in client.call("end", session="s", cancel=False)["parts"]} == {"ended"}
        for descriptor in descriptors:
            os.close(descriptor)


def test_install_without_a_domain_opens_everything(serve, image):
    server = serve({"db": image})
    with Client(server.control) as client, Nbd.connect(server.nbd_socket, "db") as nbd:
        _, descriptors = client.call_for_descriptors("prepare", timeout=60, session="s", volumes=["db"], domain=["db"])
        for descriptor in descriptors:
            os.close(descriptor)
        client.call("close", session="s", deadline_us=DEADLINE_US)
        with pytest.raises(ControlError, match="never set"):
            client.call("install", session="s")
        nbd.write(0, b"x" * BLOCK)  # is not held
