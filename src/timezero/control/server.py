"""The server's side of the control protocol: accepts, checks the peer, reads requests, answers in order.

What the operations mean is the handler's business: one handler a connection, closed when the connection goes, whatever
made it go. Each connection has a thread, so a handler may block.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from timezero.control.wire import Channel, Disconnected, WireError
from timezero.crew import Crew

CONNECTIONS_MAX = 64
SEND_TIMEOUT = 10.0  # seconds; a client that does not read its answers is dropped
_ACCEPT_PAUSE = 0.1  # seconds, when the process is out of descriptors


class RequestError(Exception):
    """A request is refused. `code` is one of docs/control-protocol.md."""

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.fatal = fatal  # close the connection after the answer


@dataclass(frozen=True)
class Answer:
    """Fields of a reply. The descriptors stay the handler's: they are sent as duplicates."""

    fields: dict[str, Any]
    descriptors: tuple[int, ...] = ()


class Handler(Protocol):
    """The operations of one connection."""

    def handle(self, op: str, request: dict[str, Any]) -> Answer:
        """Raises RequestError; any other exception is logged and answered as `internal`."""

    def close(self) -> None:
        """The connection is gone: give up what it owned."""


@dataclass(frozen=True)
class Peer:
    """Who is on the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    return Peer(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def peer_allowed(peer: Peer) -> bool:
    """Root and the server's own user."""
    return peer.uid in (0, os.geteuid())


class Server:
    """Serves the control protocol on a listening socket, which stays the caller's to close."""

    def __init__(
        self,
        listener: socket.socket,
        handler: Callable[[Peer], Handler],
        *,
        log: Callable[[str], None],
        identify: Callable[[socket.socket], Peer] = peer_of,
        connections: int = CONNECTIONS_MAX,
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._log = log
        self._identify = identify
        self._limit = connections
        self._crew = Crew(self._serve, self._drop)
        self._stopping = False
        self._acceptor = threading.Thread(target=self._accept, name="control-accept", daemon=True)

    def start(self) -> None:
        self._acceptor.start()

    def stop(self, timeout: float) -> None:
        """Accept no more, end all connections, wait up to `timeout` seconds for their handlers to be closed."""
        self._stopping = True
        deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # never started listening
            self._listener.shutdown(socket.SHUT_RDWR)
        self._crew.end(lambda connection: connection[0].shutdown())
        if self._acceptor.ident is not None:
            self._acceptor.join(max(0.0, deadline - time.monotonic()))
        self._crew.wait(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
                self._admit(sock)
            except (OSError, MemoryError):
                if not self._stopping:
                    time.sleep(_ACCEPT_PAUSE)

    def _admit(self, sock: socket.socket) -> None:
        channel = Channel(sock)
        try:
            peer = self._identify(sock)
            full = len(self._crew) >= self._limit
            if not peer_allowed(peer):
                refusal = RequestError("forbidden", "only root and the server's own user may control it")
            elif full:
                refusal = RequestError("limit", f"there are {self._limit} control connections already")
            else:
                if not self._crew.start((channel, peer)):
                    self._drop((channel, peer))
                return
            channel.send(_error(None, refusal), timeout=SEND_TIMEOUT)
        except (OSError, Disconnected, TimeoutError, MemoryError):
            pass
        channel.close()

    def _drop(self, connection: tuple[Channel, Peer]) -> None:
        connection[0].close()
        if not self._stopping:
            self._log("control: a connection was refused: no thread can be had for it")

    def _serve(self, connection: tuple[Channel, Peer]) -> None:
        channel, peer = connection
        handler: Handler | None = None
        try:
            handler = self._handler(peer)
            while self._serve_one(channel, handler):
                pass
        except (Disconnected, TimeoutError):
            pass
        except Exception as error:  # out of memory, perhaps
            self._log(f"control: a connection is closed: {error!r}")
        finally:
            try:
                if handler is not None:
                    handler.close()
            except Exception as error:
                self._log(f"control: closing a connection: {error!r}")
            self._crew.leave(channel.close)

    def _serve_one(self, channel: Channel, handler: Handler) -> bool:
        number: int | None = None
        try:
            request, _ = channel.receive()
            number = _number(request)
            answer = handler.handle(_operation(request), request)
        except WireError as error:
            refusal = RequestError("bad-request", str(error), fatal=error.fatal)
        except RequestError as error:
            refusal = error
        except (Disconnected, TimeoutError):
            raise
        except Exception as error:
            self._log(f"control: internal error: {error!r}")
            refusal = RequestError("internal", f"internal error: {error}")
        else:
            channel.send({"id": number, "ok": True, **answer.fields}, answer.descriptors, timeout=SEND_TIMEOUT)
            return True
        channel.send(_error(number, refusal), timeout=SEND_TIMEOUT)
        return not refusal.fatal


def _number(request: dict[str, Any]) -> int:
    number = request.get("id")
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise RequestError("bad-request", "id: must be a whole number")
    return number


def _operation(request: dict[str, Any]) -> str:
    op = request.get("op")
    if not isinstance(op, str):
        raise RequestError("bad-request", "op: must be a string")
    return op


def _error(number: int | None, error: RequestError) -> dict[str, Any]:
    return {"id": number, "ok": False, "error": {"code": error.code, "message": str(error)}}
