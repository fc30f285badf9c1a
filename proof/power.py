"""Power loss: a disk that keeps the order of its writes and flushes, and every state that it may then be found in.

The recorder serves a disk over NBD; nbdfuse and a loop device make a block device of it, and a real file system is
mounted on that. Whatever the device was told arrives here, in order. When the power goes, what was written before the
last flush is there; of what was written after it any part may be, whole or torn between sectors.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
_MAGIC, _OPTION, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _INFO_REPLY, _UNSUPPORTED = 1, 3, 0x80000001
_REQUEST, _SIMPLE = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_FLAGS = 1 | 4  # has flags, takes flushes
_EINVAL = 22


@dataclass(frozen=True)
class Write:
    """Bytes that were written."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Flush:
    """Everything before is durable."""


@dataclass(frozen=True)
class Mark:
    """What somebody was told by then."""

    what: str


Event = Write | Flush | Mark


class Recorder:
    """A disk with the content `base`, served on a Unix socket, one connection at a time. A context manager."""

    def __init__(self, path: Path, base: bytes) -> None:
        self.base = base
        self.events: list[Event] = []
        self._disk = bytearray(base)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.uri = f"nbd+unix:///?socket={path}"

    def mark(self, what: str) -> None:
        """Note what somebody has just been told."""
        self.events.append(Mark(what))

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()

    # ---- NBD ----

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    if self._shake_hands(connection):
                        while self._answer(connection):
                            pass
                except (EOFError, ConnectionError):
                    continue

    def _shake_hands(self, connection: socket.socket) -> bool:
        connection.sendall(struct.pack(">QQH", _MAGIC, _OPTION, 3))
        (client,) = struct.unpack(">I", _receive(connection, 4))
        while True:
            _, option, length = struct.unpack(">QII", _receive(connection, 16))
            _receive(connection, length)
            if option == _EXPORT_NAME:
                zeros = b"" if client & 2 else bytes(124)
                connection.sendall(struct.pack(">QH", len(self._disk), _FLAGS) + zeros)
                return True
            if option in (_GO, _INFO):
                info = struct.pack(">HQH", 0, len(self._disk), _FLAGS)
                connection.sendall(struct.pack(">QIII", _REPLY, option, _INFO_REPLY, len(info)) + info)
            reply = _ACK if option in (_GO, _INFO, _ABORT) else _UNSUPPORTED
            connection.sendall(struct.pack(">QIII", _REPLY, option, reply, 0))
            if option in (_GO, _ABORT):
                return option == _GO

    def _answer(self, connection: socket.socket) -> bool:
        _, _, kind, handle, offset, length = struct.unpack(">IHHQQI", _receive(connection, 28))
        data, error = b"", 0
        if kind == _READ:
            data = bytes(self._disk[offset : offset + length])
        elif kind == _WRITE:
            content = _receive(connection, length)
            self._disk[offset : offset + length] = content
            self.events.append(Write(offset, content))
        elif kind == _FLUSH:
            self.events.append(Flush())
        elif kind == _DISCONNECT:
            return False
        else:
            error = _EINVAL
        connection.sendall(struct.pack(">IIQ", _SIMPLE, error, handle) + data)
        return True


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        got = connection.recv(length - len(data))
        if not got:
            raise EOFError
        data += got
    return bytes(data)


# ---- what may be found ----


@dataclass(frozen=True)
class State:
    """A disk after the power came back. told: the marks before the power went."""

    name: str
    content: bytes
    told: tuple[str, ...]


class States:
    """The states that a recorded disk may be found in."""

    def __init__(self, base: bytes, events: list[Event]) -> None:
        self._base = base
        self._events = list(events)
        self._flushes = [place for place, event in enumerate(events) if isinstance(event, Flush)]

    @property
    def flushes(self) -> int:
        """How many there were."""
        return len(self._flushes)

    def after_each_flush(self) -> Iterator[State]:
        """All that was written before it, nothing of what came later."""
        disk, told = bytearray(self._base), []
        for place, event in enumerate(self._events):
            if isinstance(event, Mark):
                told.append(event.what)
            elif isinstance(event, Write):
                disk[event.offset : event.offset + len(event.data)] = event.data
            else:
                # The power may go at any time before the next flush: what is told until then counts as well.
                until = self._told(self._end_of_epoch(place))
                yield State(f"after flush {bisect_right(self._flushes, place)}", bytes(disk), until)

    def in_between(self, count: int, seed: int) -> Iterator[State]:
        """At random moments, with a random part of what was written after the last flush, torn here and there."""
        chance = random.Random(seed)
        for number in range(count):
            cut = chance.randrange(1, len(self._events) + 1)
            before = bisect_right(self._flushes, cut - 1)
            safe = self._flushes[before - 1] if before else 0
            disk = bytearray(self._base)
            odds = chance.random()
            for place, event in enumerate(self._events[:cut]):
                if isinstance(event, Write) and (place < safe or chance.random() < odds):
                    data = event.data if place < safe or chance.random() < 0.8 else _torn(event.data, chance)
                    disk[event.offset : event.offset + len(data)] = data
            yield State(f"at {cut}, seed {seed}, number {number}", bytes(disk), self._told(cut))

    def _end_of_epoch(self, flush: int) -> int:
        after = bisect_right(self._flushes, flush)
        return self._flushes[after] if after < len(self._flushes) else len(self._events)

    def _told(self, until: int) -> tuple[str, ...]:
        return tuple(event.what for event in self._events[:until] if isinstance(event, Mark))


def _torn(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(1, max(2, len(data) // SECTOR)) * SECTOR]
