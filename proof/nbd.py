"""A small NBD client for tests that place each write themselves: one request at a time, simple replies.

Raises ConnectionError when the server hangs up or speaks otherwise, OSError with its error when it refuses a request.
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

_OPTION = 0x49484156454F5054  # "IHAVEOPT"
_EXPORT_NAME = 1
_FIXED_NO_ZEROES = 3
_REQUEST, _REPLY = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6


class Nbd:
    """A connection in its transmission phase. Closes what it is given."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def connect(cls, where: str | tuple[str, int], name: str) -> Self:
        """To an export of a server, on a Unix socket or at (host, port)."""
        connection = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        try:
            connection.connect(where)
            self = cls(connection)
            if self._receive(8) != b"NBDMAGIC":
                raise ConnectionError(f"{where}: not an NBD server")
            self._receive(10)
            raw = name.encode()
            connection.sendall(struct.pack(">IQII", _FIXED_NO_ZEROES, _OPTION, _EXPORT_NAME, len(raw)) + raw)
            self._receive(10)  # size, flags
        except BaseException:
            connection.close()
            raise
        return self

    def read(self, offset: int, length: int) -> bytes:
        self._request(_READ, offset, length)
        return self._receive(length)

    def write(self, offset: int, data: bytes) -> None:
        self._request(_WRITE, offset, len(data), data)

    def flush(self) -> None:
        self._request(_FLUSH, 0, 0)

    def trim(self, offset: int, length: int) -> None:
        self._request(_TRIM, offset, length)

    def zero(self, offset: int, length: int) -> None:
        self._request(_WRITE_ZEROES, offset, length)

    def close(self) -> None:
        """Safe to repeat."""
        if self._socket.fileno() >= 0:
            try:
                self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
            finally:
                self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _request(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, kind, 7, offset, length) + data)
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if (magic, handle) != (_REPLY, 7):
            raise ConnectionError("not the reply to this request")
        if error:
            raise OSError(error, f"NBD request {kind} at {offset}")

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            got = self._socket.recv(length - len(data))
            if not got:
                raise ConnectionError("the server hung up")
            data += got
        return bytes(data)
