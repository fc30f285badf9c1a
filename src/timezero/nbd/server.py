"""Accepts NBD connections, negotiates each in a thread of its own, and hands the socket to `adopt`.

No byte of data passes through here: what `adopt` gets is a descriptor.

A client that says nothing, or says it slowly, has the whole time limit of a handshake while nobody else waits. When all
places are taken and somebody does, the one that has had its place longest makes room, once it had its fair share: so a
thousand such clients delay one that is in earnest by seconds, and do not keep it out.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

from timezero.nbd.handshake import TIMEOUT, Exports, Handshake, HandshakeError, Negotiated

HANDSHAKES_MAX = 64  # at the same time; further clients wait in the sockets' backlogs
FAIR_SHARE = 0.5  # seconds of a place that others wait for; a handshake takes a few round trips
_LOOK = 0.05  # seconds
#: A client whose machine is gone is noticed after IDLE + COUNT x INTERVAL seconds, and does not keep its place for ever.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
_ACCEPT_PAUSE = 0.1  # seconds, when the process is out of descriptors

Adopt = Callable[[int, Negotiated], None]


class Server:
    """Serves `exports` on listening sockets, which stay the caller's to close.

    adopt(fd, negotiated): takes the descriptor over, or raises OSError and leaves it.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        exports: Exports,
        adopt: Adopt,
        *,
        timeout: float = TIMEOUT,
        handshakes: int = HANDSHAKES_MAX,
        fair_share: float = FAIR_SHARE,
    ) -> None:
        self._exports = exports
        self._adopt = adopt
        self._timeout = timeout
        self._fair_share = fair_share
        self._places = threading.BoundedSemaphore(handshakes)
        self._lock = threading.Lock()
        self._negotiating: dict[threading.Thread, tuple[socket.socket, float]] = {}  # the oldest first
        self._stopping = False
        self._listeners = list(listeners)
        self._acceptors = [
            threading.Thread(target=self._accept, args=(listener,), name="nbd-accept", daemon=True)
            for listener in self._listeners
        ]

    def start(self) -> None:
        for thread in self._acceptors:
            thread.start()

    def stop(self) -> None:
        """Accept no more, break off handshakes under way; adopted connections go on."""
        self._stopping = True
        for listener in self._listeners:
            _shutdown(listener)
        with self._lock:
            negotiating = dict(self._negotiating)
            for sock, _ in negotiating.values():
                _shutdown(sock)
        for thread in [*self._acceptors, *negotiating]:
            if thread.ident is not None:
                thread.join(self._timeout)

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                sock, _ = listener.accept()
            except OSError:
                if not self._stopping:
                    time.sleep(_ACCEPT_PAUSE)
                continue
            while not self._places.acquire(timeout=_LOOK):
                self._make_room()
            self._begin(sock)

    def _make_room(self) -> None:
        with self._lock:
            sock, began = next(iter(self._negotiating.values()), (None, 0.0))
            if sock is not None and (self._stopping or time.monotonic() - began > self._fair_share):
                _shutdown(sock)

    def _begin(self, sock: socket.socket) -> None:
        thread = threading.Thread(target=self._negotiate, args=(sock,), name="nbd-handshake", daemon=True)
        with self._lock:
            if not self._stopping:
                self._negotiating[thread] = sock, time.monotonic()
                try:
                    thread.start()
                    return
                except (RuntimeError, MemoryError):  # no thread to be had: this client's bad luck, not the server's end
                    del self._negotiating[thread]
        sock.close()
        self._places.release()

    def _negotiate(self, sock: socket.socket) -> None:
        try:
            negotiated = Handshake(sock, self._exports, self._timeout).run()
            if negotiated is not None:
                self._hand_over(sock, negotiated)
        except (HandshakeError, OSError, MemoryError):
            pass  # this connection's end, and nobody else's business
        finally:
            with self._lock:
                del self._negotiating[threading.current_thread()]
                sock.close()  # under the lock, so that stop() never meets a number that was given out anew
            self._places.release()

    def _hand_over(self, sock: socket.socket, negotiated: Negotiated) -> None:
        sock.setblocking(True)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        with self._lock:  # after stop() nothing may be adopted
            if self._stopping:
                return
            self._adopt(sock.fileno(), negotiated)
            sock.detach()


def _shutdown(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was not connected any more
        sock.shutdown(socket.SHUT_RDWR)
