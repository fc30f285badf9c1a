"""The control protocol's wire: one JSON object a line over a Unix stream socket, descriptors beside it.

docs/control-protocol.md is the contract. Descriptors travel with the first byte of their line, so none of it is read
before they are here; they are given to lines in order, by what each line says of itself.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, NoReturn

VERSION = 1
LINE_MAX = 1 << 20  # bytes, the newline included
DESCRIPTORS_MAX = 253  # SCM_MAX_FD: the kernel's limit a message
_PIECE = 64 << 10


class WireError(Exception):
    """The peer sent something that is no message. `fatal`: the stream is out of step, close it."""

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal


class Disconnected(Exception):
    """The peer is gone."""


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises WireError."""
    try:
        message = json.loads(line.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}", fatal=False) from None
    if not isinstance(message, dict):
        raise WireError("not a JSON object", fatal=False)
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Channel:
    """One end of a control connection. Not for several threads at once, except `shutdown`.

    accept_descriptors: without it, descriptors that the peer sends are discarded by the kernel.
    """

    def __init__(self, sock: socket.socket, *, accept_descriptors: bool = False) -> None:
        self._sock = sock
        self._accept = accept_descriptors
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def send(self, message: dict[str, Any], descriptors: Sequence[int] = (), *, timeout: float | None = None) -> None:
        """Send a line. Raises Disconnected, TimeoutError."""
        if descriptors:
            message = {**message, "fds": len(descriptors)}
        line = encode(message)
        self._sock.settimeout(timeout)
        try:
            if descriptors:
                sent = socket.send_fds(self._sock, [line], list(descriptors))
                line = line[sent:]
            self._sock.sendall(line)
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected(str(error)) from error

    def receive(self, *, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The next message and its descriptors, which become the caller's.

        Raises WireError, Disconnected, and TimeoutError when no whole line came within `timeout` seconds.
        """
        line = self._read_line(None if timeout is None else time.monotonic() + timeout)
        message = decode(line)
        expected = message.get("fds", 0) if self._accept else 0
        here = len(self._descriptors)
        if type(expected) is not int or not 0 <= expected <= here or (here > expected and not self._buffer):
            self._drop_descriptors()
            raise WireError("the number of descriptors does not match", fatal=True)
        descriptors, self._descriptors = self._descriptors[:expected], self._descriptors[expected:]
        return message, descriptors

    def shutdown(self) -> None:
        """End the connection from any thread: whoever waits in `receive` gets Disconnected."""
        with contextlib.suppress(OSError):  # already gone
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._drop_descriptors()
        self._sock.close()

    def _read_line(self, deadline: float | None) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched >= LINE_MAX:
                raise WireError(f"a line of more than {LINE_MAX} bytes", fatal=True)
            self._fill(deadline)
        if end >= LINE_MAX:
            raise WireError(f"a line of more than {LINE_MAX} bytes", fatal=True)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _fill(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("no answer in time")
        self._sock.settimeout(left)
        try:
            piece = self._receive_with_descriptors() if self._accept else self._sock.recv(_PIECE)
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected(str(error)) from error
        if not piece:
            raise Disconnected("the peer closed the connection")
        self._buffer += piece

    def _receive_with_descriptors(self) -> bytes:
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
        piece, ancillary, flags, _ = self._sock.recvmsg(_PIECE, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > DESCRIPTORS_MAX:
            self._drop_descriptors()
            raise WireError("descriptors were lost", fatal=True)
        return piece

    def _drop_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
