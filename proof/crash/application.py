"""Applications that write to a served volume and remember what was acknowledged; and what their volume may then hold.

A writer has one update at a time, of one block, so its updates have one order: whatever state of the volume is looked
at (after a crash; at T0) must be that after its first k updates, for one k: a plain check that needs no search.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from proof.nbd import Nbd

BLOCK = 4096
MAGIC = 0x4352415348544B42
CELL = np.dtype([(name, "<u8") for name in ("magic", "writer", "sequence", "block")])
FLUSH_EVERY = 16
PAUSE = 0.0005  # seconds: what is looked at are crashes, and a machine that is kept busy makes them slow


def stamp(writer: int, sequence: int, block: int) -> bytes:
    """The content of a block after update `sequence` (from 1; 0: before the first) of `writer`."""
    return np.array([(MAGIC, writer, sequence, block)] * (BLOCK // CELL.itemsize), CELL).tobytes()


@dataclass
class Writer:
    """One connection and its blocks first .. first + count. Update number n is at place n - 1 of the lists."""

    number: int
    first: int
    count: int
    blocks: list[int] = field(default_factory=list)
    started: list[int] = field(default_factory=list)  # CLOCK_MONOTONIC, ns
    acknowledged: list[int] = field(default_factory=list)
    flushed: int = 0

    def write_until(self, stop: threading.Event, socket: str, export: str) -> None:
        """Update and flush, until told to stop or hung up on."""
        chance = random.Random(self.number * 1000 + len(self.blocks))
        with contextlib.suppress(OSError), Nbd.connect(socket, export) as connection:
            while not stop.is_set():
                block = self.first + chance.randrange(self.count)
                data = stamp(self.number, len(self.blocks) + 1, block)
                self.blocks.append(block)
                self.started.append(time.monotonic_ns())
                connection.write(block * BLOCK, data)
                self.acknowledged.append(time.monotonic_ns())
                if len(self.acknowledged) % FLUSH_EVERY == 0:
                    connection.flush()
                    self.flushed = len(self.acknowledged)
                time.sleep(PAUSE)

    def updates_in(self, image: bytes) -> int:
        """How many of the updates, in their order, the image holds. Raises ValueError when no number explains it."""
        cells = np.frombuffer(image, CELL, BLOCK // CELL.itemsize * self.count, self.first * BLOCK)
        cells = cells.reshape(self.count, -1)
        if (cells != cells[:, :1]).any():
            raise ValueError(f"writer {self.number}: a torn block")
        head = cells[:, 0]
        where = np.arange(self.first, self.first + self.count)
        if ((head["magic"] != MAGIC) | (head["writer"] != self.number) | (head["block"] != where)).any():
            raise ValueError(f"writer {self.number}: a block with content of another place")
        held = head["sequence"].astype(np.int64)
        k = int(held.max())
        expected = np.zeros(self.count, np.int64)
        for number, block in enumerate(self.blocks[:k], 1):
            expected[block - self.first] = number
        if k > len(self.blocks) or (held != expected).any():
            wrong = int(np.flatnonzero(held != expected)[0]) if k <= len(self.blocks) else int(held.argmax())
            raise ValueError(
                f"writer {self.number}: of {k} updates one is missing: "
                f"block {wrong + self.first} has update {held[wrong]}"
            )
        return k

    def settle(self, image: bytes) -> None:
        """Nothing is under way: what was acknowledged is in the image, what was not may be. Raises ValueError."""
        k = self.updates_in(image)
        if k < len(self.acknowledged):
            raise ValueError(
                f"writer {self.number}: {len(self.acknowledged)} updates were acknowledged ({self.flushed} flushed), "
                f"and {k} are there"
            )
        del self.blocks[k:], self.started[k:]
        self.acknowledged += [time.monotonic_ns()] * (k - len(self.acknowledged))


class Application:
    """Writers over all of a volume."""

    def __init__(self, size: int, writers: int = 2, first: int = 0) -> None:
        """size: of the volume, bytes. first: number of its first writer, for there may be several volumes."""
        share = size // BLOCK // writers
        self.writers = [Writer(first + number, number * share, share) for number in range(writers)]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def content(self) -> bytes:
        """Of the volume before the first update."""
        return b"".join(
            stamp(writer.number, 0, block)
            for writer in self.writers
            for block in range(writer.first, writer.first + writer.count)
        )

    @property
    def updates(self) -> int:
        """Acknowledged so far."""
        return sum(len(writer.acknowledged) for writer in self.writers)

    @property
    def alive(self) -> bool:
        """Is nobody hung up on?"""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def start(self, socket: str, export: str) -> None:
        """Connect and write, going on where it was stopped."""
        self._stop.clear()
        self._threads = [
            threading.Thread(target=writer.write_until, args=(self._stop, socket, export), daemon=True)
            for writer in self.writers
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """After the update under way. Safe to repeat."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._threads.clear()

    def settle(self, image: bytes) -> None:
        """Check the volume of an application that is stopped. Raises ValueError."""
        for writer in self.writers:
            writer.settle(image)

    def explain(self, image: bytes, window: tuple[int, int]) -> None:
        """Is the image that of one instant within the window? Raises ValueError."""
        explain([(self, image)], window)


def explain(images: Iterable[tuple[Application, bytes]], window: tuple[int, int]) -> None:
    """Are the images of these applications' volumes all those of one instant within the window? Raises ValueError."""
    earliest, latest = window
    for application, image in images:
        for writer in application.writers:
            k = writer.updates_in(image)
            earliest = max(earliest, writer.started[k - 1] if k else 0)
            latest = min(latest, writer.acknowledged[k] if k < len(writer.acknowledged) else latest)
    if earliest > latest:
        raise ValueError(f"no instant explains the image: it would be {earliest - latest} ns before itself")
