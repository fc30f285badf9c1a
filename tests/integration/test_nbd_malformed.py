"""Malformed and vanishing NBD clients on raw sockets: their connection ends, the server and all others live."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
MIB = 1 << 20
SIZE = 4 * MIB
TIMEOUT = 20.0

pytestmark = pytest.mark.timeout(120)


def request(
    command: int, offset: int, length: int, *, flags: int = 0, cookie: int = 1, magic: int = 0x25609513
) -> bytes:
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)


class Client:
    """The least of an NBD client: NBD_OPT_EXPORT_NAME, then simple replies."""

    def __init__(self, path: str, *, handshake: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        if handshake:
            assert self.receive(18)[:16] == b"NBDMAGICIHAVEOPT"
            self.send(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 4) + b"disk")
            assert struct.unpack(">Q", self.receive(10)[:8]) == (SIZE,)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise EOFError(f"the server closed, {length - len(data)} bytes early")
            data += piece
        return bytes(data)

    def reply(self) -> tuple[int, int]:
        """Error and cookie of a simple reply."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698
        return error, cookie

    def ended(self) -> bool:
        """Has the server closed? Waits for it, and takes whatever it still sends."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def server(serve, tmp_path: Path):
    image = tmp_path / "disk.img"
    image.write_bytes(b"\x5a" * SIZE)
    return serve({"disk": image})


@pytest.fixture
def bystander(server) -> Iterator[Client]:
    """A good client that was there before; it must notice nothing."""
    client = Client(server.nbd_socket)
    yield client
    assert server.process.poll() is None
    client.send(request(READ, MIB, 4096, cookie=77))
    assert client.reply() == (0, 77)
    assert client.receive(4096) == b"\x5a" * 4096
    fresh = Client(server.nbd_socket)
    fresh.send(request(WRITE, 0, 512, cookie=5) + b"n" * 512)
    assert fresh.reply() == (0, 5)
    fresh.send(request(READ, 0, 512, cookie=6))
    assert fresh.reply() == (0, 6)
    assert fresh.receive(512) == b"n" * 512
    fresh.send(request(DISC, 0, 0))
    assert fresh.ended()
    fresh.close()
    client.close()


VIOLATIONS = {
    "wrong magic": request(READ, 0, 512, magic=0x25609514),
    "reply magic": request(READ, 0, 512, magic=0x67446698),
    "zeros": bytes(28),
    "text": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "payload beyond the limit": request(WRITE, 0, 32 * MIB + 1),
    "payload of 4 GiB": request(WRITE, 0, 0xFFFFFFFF) + bytes(4096),
    "out of step": (request(READ, 0, 512) + request(READ, 0, 512))[3:],
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_violation_ends_the_connection(server, bystander: Client, data: bytes) -> None:
    client = Client(server.nbd_socket)
    client.send(data)
    assert client.ended()
    client.close()


REFUSALS = {
    "read beyond the end": (request(READ, SIZE, 1), 22),
    "read around the world": (request(READ, 2**64 - 1, 2), 22),
    "read too long": (request(READ, 0, 32 * MIB + 512), 22),
    "write beyond the end": (request(WRITE, SIZE - 1, 2) + b"xx", 28),
    "zeroes beyond the end": (request(ZEROES, SIZE, 1), 28),
    "trim beyond the end": (request(TRIM, 0, SIZE + 1), 22),
    "unknown command": (request(4711, 0, 0), 22),
    "unknown flag": (request(WRITE, 0, 3, flags=0x4000) + b"xyz", 22),
    "flush with a range": (request(FLUSH, 0, 512), 22),
    "status not negotiated": (request(STATUS, 0, 512), 22),
}


@pytest.mark.parametrize(("data", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refused_request_leaves_the_stream_in_step(server, bystander: Client, data: bytes, error: int) -> None:
    client = Client(server.nbd_socket)
    client.send(data + request(READ, 2 * MIB, 16, cookie=2))
    assert client.reply() == (error, 1)
    assert client.reply() == (0, 2)
    assert client.receive(16) == b"\x5a" * 16
    client.close()


@pytest.mark.parametrize("cut", [1, 27, 28, 29, 28 + 4096, 28 + 99_999])
def test_vanishing_in_the_middle_of_a_message(server, bystander: Client, cut: int) -> None:
    client = Client(server.nbd_socket)
    client.send((request(WRITE, 3 * MIB, 100_000) + b"q" * 100_000)[:cut])
    client.close()
    reader = Client(server.nbd_socket)
    reader.send(request(READ, 3 * MIB, 100_000))
    assert reader.reply() == (0, 1)
    assert reader.receive(100_000) == b"\x5a" * 100_000
    reader.close()


def test_noise(server, bystander: Client) -> None:
    generator = random.Random(4)
    for _ in range(40):
        client = Client(server.nbd_socket)
        with contextlib.suppress(ConnectionError):
            client.send(generator.randbytes(generator.randrange(28, 5000)))
        assert client.ended()
        client.close()


@pytest.mark.parametrize("data", [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 4096])
def test_noise_instead_of_a_handshake(server, bystander: Client, data: bytes) -> None:
    client = Client(server.nbd_socket, handshake=False)
    client.receive(18)
    try:
        client.send(data)
        client.socket.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has already hung up
    assert client.ended()
    client.close()


def test_one_that_never_reads_stalls_only_itself(server, bystander: Client) -> None:
    lazy = Client(server.nbd_socket)
    lazy.send(b"".join(request(READ, 0, MIB, cookie=i) for i in range(300)))
    for cookie in range(50):
        bystander.send(request(READ, MIB, 4096, cookie=cookie))
        assert bystander.reply() == (0, cookie)
        bystander.receive(4096)
    lazy.close()


def test_many_connections_come_and_go(server, bystander: Client) -> None:
    for round_ in range(5):
        clients = [Client(server.nbd_socket) for _ in range(20)]
        for client in clients:
            client.send(request(READ, round_ * 4096, 512, cookie=round_))
        for client in clients:
            assert client.reply() == (0, round_)
            client.close()


def test_it_ends_in_time_with_bad_clients_connected(server) -> None:
    idle = Client(server.nbd_socket)
    halfway = Client(server.nbd_socket)
    halfway.send(request(WRITE, 0, 100_000) + b"half")
    lazy = Client(server.nbd_socket)
    lazy.send(b"".join(request(READ, 0, MIB, cookie=i) for i in range(40)))
    shy = Client(server.nbd_socket, handshake=False)
    assert server.stop() == 0
    for client in (idle, halfway, lazy, shy):
        client.close()
