"""The server's side of the fixed newstyle handshake, on a connected socket.

Nothing past the handshake is ever read from the socket: a client may send its first request right behind its last
option, and that request is the reactor's to read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from timezero.nbd.constants import (
    BASE_ALLOCATION,
    BASE_ALLOCATION_ID,
    FLAG_SEND_DF,
    MAX_PAYLOAD,
    NAME_BYTES_MAX,
    NBD_MAGIC,
    OPTION_MAGIC,
    PREFERRED_BLOCK,
    REPLY_MAGIC,
    HandshakeFlag,
    Info,
    Option,
    Reply,
)

OPTION_BYTES_MAX = 64 << 10  # no sane option is longer; a longer one ends the connection
OPTIONS_MAX = 256  # a connection
TIMEOUT = 10.0  # seconds for the whole handshake


class HandshakeError(Exception):
    """The peer broke the protocol, went away or ran out of time: close the connection."""


class Refusal(Exception):
    """An option is answered with an error; the handshake goes on."""

    def __init__(self, reply: Reply, message: str) -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True)
class Export:
    """What the handshake tells about a volume. Sizes in bytes."""

    name: str
    size: int
    flags: int
    block_size: int = PREFERRED_BLOCK
    description: str = ""


class Exports(Protocol):
    """The volumes on offer."""

    def names(self) -> Sequence[str]: ...
    def find(self, name: str) -> Export | None:
        """The export of that name; of the empty name, the only one there is."""


@dataclass(frozen=True)
class Negotiated:
    """What the transmission phase runs under."""

    export: Export
    structured: bool
    base_allocation_id: int | None


class Stream:
    """Exact reads and whole writes on a socket before one deadline for all of them."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self._deadline = time.monotonic() + timeout

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise HandshakeError("the handshake took too long")
        self._sock.settimeout(left)

    def read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            self._arm()
            try:
                piece = self._sock.recv(length - len(parts))
            except OSError as error:
                raise HandshakeError(str(error)) from error
            if not piece:
                raise HandshakeError("the client went away")
            parts += piece
        return bytes(parts)

    def write(self, data: bytes) -> None:
        self._arm()
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise HandshakeError(str(error)) from error


class Payload:
    """The data of one option, taken apart; whatever does not fit is a Refusal."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def _take(self, length: int) -> memoryview:
        if length > len(self._data):
            raise Refusal(Reply.ERR_INVALID, "the option's data is too short")
        piece, self._data = self._data[:length], self._data[length:]
        return piece

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> str:
        length = self.u32()
        piece = self._take(length)
        if length > NAME_BYTES_MAX:
            raise Refusal(Reply.ERR_TOO_BIG, f"a string is longer than {NAME_BYTES_MAX} bytes")
        try:
            return bytes(piece).decode()
        except UnicodeDecodeError:
            raise Refusal(Reply.ERR_INVALID, "a string is not UTF-8") from None

    def end(self) -> None:
        if self._data:
            raise Refusal(Reply.ERR_INVALID, "the option has more data than it should")


class Handshake:
    """One connection's negotiation."""

    def __init__(self, sock: socket.socket, exports: Exports, timeout: float = TIMEOUT) -> None:
        self._stream = Stream(sock, timeout)
        self._exports = exports
        self._no_zeroes = False
        self._structured = False
        self._context_export: str | None = None  # for which base:allocation was selected
        self._option = 0
        self._handlers: dict[int, Callable[[bytes], Negotiated | None]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.INFO: self._info,
            Option.GO: self._info,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._list_meta_context,
            Option.SET_META_CONTEXT: self._set_meta_context,
            Option.STARTTLS: self._unsupported,
            Option.EXTENDED_HEADERS: self._unsupported,
        }

    def run(self) -> Negotiated | None:
        """What was agreed; None when the client left politely. Raises HandshakeError."""
        fixed = self._greet()
        for _ in range(OPTIONS_MAX):
            data = self._read_option()
            if not fixed and self._option != Option.EXPORT_NAME:
                raise HandshakeError("an option other than NBD_OPT_EXPORT_NAME without fixed newstyle")
            try:
                agreed = self._handlers.get(self._option, self._unsupported)(data)
            except Refusal as refusal:
                self._reply(refusal.reply, str(refusal).encode())
                continue
            if agreed is not None or self._option == Option.ABORT:
                return agreed
        raise HandshakeError(f"more than {OPTIONS_MAX} options")

    # ---- wire ----

    def _greet(self) -> bool:
        ours = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self._stream.write(struct.pack(">QQH", NBD_MAGIC, OPTION_MAGIC, ours))
        (flags,) = struct.unpack(">I", self._stream.read(4))
        if flags & ~ours:
            raise HandshakeError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        return bool(flags & HandshakeFlag.FIXED_NEWSTYLE)

    def _read_option(self) -> bytes:
        magic, self._option, length = struct.unpack(">QII", self._stream.read(16))
        if magic != OPTION_MAGIC:
            raise HandshakeError("bad option magic")
        if length > OPTION_BYTES_MAX:
            raise HandshakeError(f"an option of {length} bytes")
        return self._stream.read(length)

    def _reply(self, kind: Reply, data: bytes = b"") -> None:
        self._stream.write(struct.pack(">QIII", REPLY_MAGIC, self._option, kind, len(data)) + data)

    # ---- options ----

    def _unsupported(self, data: bytes) -> NoReturn:
        if self._option == Option.STARTTLS:
            Payload(data).end()
            raise Refusal(Reply.ERR_UNSUP, "this server has no TLS")
        raise Refusal(Reply.ERR_UNSUP, f"option {self._option} is not supported")

    def _abort(self, data: bytes) -> None:
        with contextlib.suppress(HandshakeError):  # it may leave without waiting for the answer
            self._reply(Reply.ACK)

    def _list(self, data: bytes) -> None:
        Payload(data).end()
        for name in self._exports.names():
            encoded = name.encode()
            self._reply(Reply.SERVER, struct.pack(">I", len(encoded)) + encoded)
        self._reply(Reply.ACK)

    def _structured_reply(self, data: bytes) -> None:
        Payload(data).end()
        self._structured = True
        self._reply(Reply.ACK)

    def _export_name(self, data: bytes) -> Negotiated:
        try:
            export = self._exports.find(data.decode()) if len(data) <= NAME_BYTES_MAX else None
        except UnicodeDecodeError:
            export = None
        if export is None:
            raise HandshakeError("unknown export")  # this option cannot be answered with an error
        padding = b"" if self._no_zeroes else bytes(124)
        self._stream.write(struct.pack(">QH", export.size, self._flags(export)) + padding)
        return self._agree(export)

    def _info(self, data: bytes) -> Negotiated | None:
        payload = Payload(data)
        name = payload.string()
        wanted = {payload.u16() for _ in range(payload.u16())}
        payload.end()
        export = self._find(name)
        self._reply_info(Info.EXPORT, struct.pack(">QH", export.size, self._flags(export)))
        if Info.NAME in wanted:
            self._reply_info(Info.NAME, export.name.encode())
        if Info.DESCRIPTION in wanted and export.description:
            self._reply_info(Info.DESCRIPTION, export.description.encode())
        if Info.BLOCK_SIZE in wanted:
            preferred = min(max(export.block_size, PREFERRED_BLOCK), MAX_PAYLOAD)
            self._reply_info(Info.BLOCK_SIZE, struct.pack(">III", 1, preferred, MAX_PAYLOAD))
        self._reply(Reply.ACK)
        return self._agree(export) if self._option == Option.GO else None

    def _list_meta_context(self, data: bytes) -> None:
        _, queries = self._context_queries(data)
        if not queries or {"base:", BASE_ALLOCATION} & set(queries):
            self._reply_context(0)
        self._reply(Reply.ACK)

    def _set_meta_context(self, data: bytes) -> None:
        self._context_export = None  # the option replaces what was selected before, also when it fails
        export, queries = self._context_queries(data)
        if BASE_ALLOCATION in queries:
            self._reply_context(BASE_ALLOCATION_ID)
            self._context_export = export.name
        self._reply(Reply.ACK)

    # ---- pieces ----

    def _context_queries(self, data: bytes) -> tuple[Export, list[str]]:
        payload = Payload(data)
        name = payload.string()
        queries = [payload.string() for _ in range(payload.u32())]
        payload.end()
        if not self._structured:
            raise Refusal(Reply.ERR_INVALID, "structured replies come first")
        return self._find(name), queries

    def _reply_context(self, context_id: int) -> None:
        self._reply(Reply.META_CONTEXT, struct.pack(">I", context_id) + BASE_ALLOCATION.encode())

    def _reply_info(self, kind: Info, data: bytes) -> None:
        self._reply(Reply.INFO, struct.pack(">H", kind) + data)

    def _find(self, name: str) -> Export:
        export = self._exports.find(name)
        if export is None:
            raise Refusal(Reply.ERR_UNKNOWN, f"there is no export {name!r}" if name else "there is no default export")
        return export

    def _flags(self, export: Export) -> int:
        return export.flags if self._structured else export.flags & ~FLAG_SEND_DF

    def _agree(self, export: Export) -> Negotiated:
        selected = self._structured and self._context_export == export.name
        return Negotiated(export, self._structured, BASE_ALLOCATION_ID if selected else None)
