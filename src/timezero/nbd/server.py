"""Accepts NBD connections, negotiates each in a thread of its own, and hands the socket to `adopt`.

No byte of data passes through here: what `adopt` gets is a descriptor.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

from timezero.nbd.handshake import TIMEOUT, Exports, Handshake, HandshakeError, Negotiated

HANDSHAKES_MAX = 64  # at the same time; further clients wait in the sockets' backlogs
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
    ) -> None:
        self._exports = exports
        self._adopt = adopt
        self._timeout = timeout
        self._places = threading.BoundedSemaphore(handshakes)
        self._lock = threading.Lock()
        self._negotiating: dict[threading.Thread, socket.socket] = {}
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
            for sock in negotiating.values():
                _shutdown(sock)
        for thread in [*self._acceptors, *negotiating]:
            if thread.ident is not None:
                thread.join(self._timeout)

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping:
            self._places.acquire()
            try:
                sock, _ = listener.accept()
            except OSError:
                self._places.release()
                if not self._stopping:
                    time.sleep(_ACCEPT_PAUSE)
                continue
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        thread = threading.Thread(target=self._negotiate, args=(sock,), name="nbd-handshake", daemon=True)
        with self._lock:
            if not self._stopping:
                self._negotiating[thread] = sock
                thread.start()
                return
        sock.close()
        self._places.release()

    def _negotiate(self, sock: socket.socket) -> None:
        try:
            negotiated = Handshake(sock, self._exports, self._timeout).run()
            if negotiated is not None:
                self._hand_over(sock, negotiated)
        except (HandshakeError, OSError):
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
        with self._lock:  # after stop() nothing may be adopted
            if self._stopping:
                return
            self._adopt(sock.fileno(), negotiated)
            sock.detach()


def _shutdown(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was not connected any more
        sock.shutdown(socket.SHUT_RDWR)
