"""TCP clients whose machine is gone, or lives on and is not heard of.

The network is a namespace's loopback device, which is taken down under connections that stay: nothing is refused,
nothing answered, as with a cable that was pulled.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.watching import until
from timezero._native.subsystem import Reactor, Volume

MIB = 1 << 20
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_READ = struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, MIB)
_REPLY = 16 + MIB

pytestmark = pytest.mark.timeout(120)


class Network:
    """A network of its own with nothing but a loopback device."""

    def __init__(self) -> None:
        with ThreadPoolExecutor(1) as pool:  # a thread can leave the others' namespace; its sockets stay in the new one
            pool.submit(self._enter).result()

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.set(up=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.pairs = [self._pair() for _ in range(2)]

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(self._listener.getsockname())
        return client, self._listener.accept()[0]

    def set(self, *, up: bool) -> None:
        """Plug the cable in, or pull it."""
        name = b"lo".ljust(16, b"\0")
        found = fcntl.ioctl(self._control, _SIOCGIFFLAGS, name + bytes(24))
        [flags] = struct.unpack_from("H", found, 16)
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(self._control, _SIOCSIFFLAGS, name + struct.pack("H", flags) + bytes(22))

    def close(self) -> None:
        for client, server in self.pairs:
            client.close()
            server.close()
        self._listener.close()
        self._control.close()


@pytest.fixture(params=["uring", "threads"])
def volume(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Volume]:
    path = tmp_path / "data.img"
    path.write_bytes(os.urandom(MIB))
    reactor = Reactor(request.param)
    volume = Volume(reactor, str(path))
    yield volume
    volume.close()
    reactor.close()


@pytest.fixture
def network(root: None) -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


def adopt(volume: Volume, server: socket.socket, silent_ms: int) -> None:
    server.setblocking(True)
    volume.adopt(server.fileno(), structured=False, silent_ms=silent_ms)
    server.detach()


def connections(volume: Volume, number: int) -> Callable[[], bool]:
    return lambda: volume.stats()["connections"] == number


def test_a_client_that_vanishes_with_replies_under_way(volume: Volume, network: Network) -> None:
    """The one that may be silent for a second goes; with the other the kernel would try for a quarter of an hour."""
    enough = threading.Event()
    (client, server), (other, other_server) = network.pairs
    adopt(volume, server, 1000)
    adopt(volume, other_server, 0)

    def load(client: socket.socket) -> None:
        client.sendall(_READ * 2000)  # more than can be answered before the cable is pulled
        client.settimeout(1)
        taken = 0
        while piece := client.recv(65536):
            taken += len(piece)
            if taken > _REPLY:
                enough.set()

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(load, client), pool.submit(load, other)]
        assert enough.wait(60)
        network.set(up=False)
        for end in ends:
            with pytest.raises(TimeoutError):  # nothing comes, no end either
                end.result()
    assert volume.stats()["connections"] >= 1
    until(connections(volume, 1), "a client that vanished keeps its place")
    time.sleep(1)
    assert volume.stats()["connections"] == 1  # two minutes
    network.set(up=True)
    assert volume.disconnect_all(30)


def test_a_client_that_does_not_read_is_there(volume: Volume) -> None:
    """It was stopped, say. It answers probes, and finds its replies when it goes on."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        adopt(volume, listener.accept()[0], 300)
        client.sendall(_READ * 40)
        time.sleep(4)
        assert volume.stats()["connections"] == 1
        client.settimeout(60)
        left = 40 * _REPLY
        while left:
            piece = client.recv(min(left, MIB))
            assert piece, "it was cut off"
            left -= len(piece)


def test_a_client_that_says_nothing_is_there(volume: Volume) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        adopt(volume, listener.accept()[0], 300)
        time.sleep(2)
        assert volume.stats()["connections"] == 1
        client.sendall(_READ)
        client.settimeout(60)
        assert client.recv(16, socket.MSG_WAITALL)[:8] == bytes.fromhex("6744669800000000")
    until(connections(volume, 0), "a client that has closed keeps its place")
