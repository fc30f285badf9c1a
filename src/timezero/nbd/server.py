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

from timezero.crew import Crew
from timezero.nbd.handshake import TIMEOUT, Exports, Handshake, HandshakeError, Negotiated

HANDSHAKES_MAX = 64  # at the same time; further clients wait in the sockets' backlogs
FAIR_SHARE = 0.5  # seconds of a place that others wait for; a handshake takes a few round trips
_LOOK = 0.05  # seconds
#: A client whose machine is gone is noticed after IDLE + COUNT x INTERVAL seconds, and does not keep its place.
#: Keepalive rests while replies are not acknowledged; csrc/subsystem/nbd_peer.c looks after such a client.
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
        self._crew = Crew(self._negotiate, self._drop)
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
        self._crew.end(_shutdown)
        for thread in self._acceptors:
            if thread.ident is not None:
                thread.join(self._timeout)
        self._crew.wait(self._timeout)

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                sock, _ = listener.accept()
            except (OSError, MemoryError):
                if not self._stopping:
                    time.sleep(_ACCEPT_PAUSE)
                continue
            free = self._places.acquire(blocking=False)
            while not free:  # made first and waited for then: a crowd goes through as fast as its fair share allows
                self._make_room()
                free = self._places.acquire(timeout=_LOOK)
            if not self._crew.start(sock):  # no thread to be had: this client's bad luck, not the server's end
                self._drop(sock)

    def _make_room(self) -> None:
        oldest = self._crew.oldest()
        if oldest and (self._stopping or time.monotonic() - oldest[1] > self._fair_share):
            _shutdown(oldest[0])

    def _drop(self, sock: socket.socket) -> None:
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
            self._crew.leave(sock.close)  # so that stop() never meets a number that was given out anew
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
