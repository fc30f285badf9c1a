"""The oracle must be able to fail: images replayed up to an instant, then broken in every way it claims to notice."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from proof.explain import CELL, FILL_CONNECTION, MAGIC, RECORD, explain

CELLS = 256


def cell_bytes(volume: int, connection: int, offset: int, sequence: int) -> bytes:
    head = np.array([(MAGIC, volume, connection, offset, sequence)], dtype="<u8,<u4,<u4,<u8,<u8").tobytes()
    body = head + bytes([sequence & 255]) * (508 - len(head))
    return body + zlib.crc32(body).to_bytes(4, "little")


class World:
    """One volume, two connections, updates in sequence with overlapping times between the connections."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.logs = []
        for connection in range(2):
            records, clock = [], 1000 + connection
            for sequence in range(1, 200):
                start, ack = clock, clock + int(rng.integers(5, 50))
                clock = ack + int(rng.integers(1, 20))
                length = int(rng.integers(1, 9))
                at = connection * 128 + int(rng.integers(0, 128 - length))
                records.append((sequence, start, ack, at * CELL, length * CELL, 1 if rng.random() < 0.1 else 0))
            self.logs.append(np.array(records, dtype=RECORD))

    def state(self, t: int) -> bytearray:
        """The volume when every update started before t is applied, and no other."""
        image = bytearray()
        for cell in range(CELLS):
            image += cell_bytes(3, FILL_CONNECTION, cell * CELL, 0)
        for connection, log in enumerate(self.logs):
            for record in log[log["start"] < t]:
                self.apply(image, connection, record)
        return image

    def apply(self, image: bytearray, connection: int, record: np.void, cells: int | None = None) -> None:
        for i in range(int(record["length"]) // CELL if cells is None else cells):
            offset = int(record["offset"]) + i * CELL
            new = bytes(CELL) if record["kind"] else cell_bytes(3, connection, offset, int(record["sequence"]))
            image[offset : offset + CELL] = new

    def judge(self, folder: Path, image: bytes, window=None):
        paths = []
        for connection, log in enumerate(self.logs):
            paths.append(folder / f"{connection}.log")
            log.tofile(paths[-1])
        (folder / "image").write_bytes(image)
        return explain([(folder / "image", 3, paths)], window)


@pytest.mark.parametrize("seed", range(5))
def test_the_state_of_an_instant_is_explained(tmp_path, seed):
    world = World(seed)
    for t in (0, 1500, 3000, 5000, 1 << 40):
        verdict = world.judge(tmp_path, world.state(t))
        assert verdict.explained, verdict.faults
        # an update counts from its start in this replay: T0 may be told late by as much as one update lasts
        assert verdict.earliest <= t <= verdict.latest + 1


@pytest.mark.parametrize("seed", range(5))
def test_an_update_from_after_t0_is_noticed(tmp_path, seed):
    world = World(seed)
    log = world.logs[0]
    image = world.state(3000)
    late = log[(log["start"] > 3200) & (log["kind"] == 0)][0]
    world.apply(image, 0, late)
    assert not world.judge(tmp_path, image).explained


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_update_is_noticed(tmp_path, seed):
    world = World(seed)
    whole = world.state(3000)
    poorer = World(seed)
    # the latest update that was acknowledged long before T0, is not covered by a later one, and never reaches the image
    for lost in reversed(world.logs[1][world.logs[1]["acknowledged"] < 2500]):
        poorer.logs[1] = world.logs[1][world.logs[1]["sequence"] != lost["sequence"]]
        image = poorer.state(3000)
        if image != whole:
            break
    assert not world.judge(tmp_path, bytes(image)).explained


@pytest.mark.parametrize("seed", range(5))
def test_a_torn_update_is_noticed(tmp_path, seed):
    world = World(seed)
    log = world.logs[0]
    # in flight at T0, so both outcomes are allowed for it, but not half of each
    t = next(int(r["start"]) + 1 for r in log[80:] if r["length"] >= 2 * CELL and r["kind"] == 0)
    image = world.state(t - 1)
    record = log[log["start"] == t - 1][0]
    assert world.judge(tmp_path, bytes(image)).explained
    world.apply(image, 0, record, cells=1)
    assert any("torn" in fault for fault in world.judge(tmp_path, bytes(image)).faults)


def test_content_of_another_place_and_damage_are_noticed(tmp_path):
    world = World(1)
    image = world.state(3000)
    image[0:CELL], image[CELL : 2 * CELL] = image[CELL : 2 * CELL], image[0:CELL]
    assert not world.judge(tmp_path, bytes(image)).explained
    image = world.state(3000)
    image[77 * CELL + 100] ^= 1
    assert not world.judge(tmp_path, bytes(image)).explained
    image = world.state(3000)
    image[10 * CELL : 11 * CELL] = cell_bytes(3, 0, 10 * CELL, 9999)
    assert not world.judge(tmp_path, bytes(image)).explained


def test_zeros_that_nobody_wrote_are_noticed(tmp_path):
    world = World(2)
    world.logs[0]["kind"] = 0
    image = world.state(1 << 40)
    image[0 : 128 * CELL] = bytes(128 * CELL)
    assert not world.judge(tmp_path, bytes(image)).explained


def test_an_instant_outside_the_window_is_noticed(tmp_path):
    world = World(1)
    assert world.judge(tmp_path, bytes(world.state(3000)), window=(2900, 3100)).explained
    assert not world.judge(tmp_path, bytes(world.state(3000)), window=(5000, 6000)).explained
