"""The tests' own NBD client: what the server says is checked, and never asserted."""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path
from threading import Thread

import pytest

from proof.nbd import Nbd


def reply(error: int = 0, handle: int = 7, magic: int = 0x67446698) -> bytes:
    return struct.pack(">IIQ", magic, error, handle)


@pytest.mark.parametrize(
    ("said", "error", "number"),
    [
        (b"", ConnectionError, None),
        (reply()[:9], ConnectionError, None),
        (reply(magic=0x668E33EF), ConnectionError, None),
        (reply(handle=8), ConnectionError, None),
        (reply() + b"short", ConnectionError, None),
        (reply(error=errno.EIO), OSError, errno.EIO),
    ],
)
def test_what_is_no_answer(said: bytes, error: type[OSError], number: int | None) -> None:
    ours, theirs = socket.socketpair()
    with theirs, ours:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(error) as caught:
            Nbd(ours).read(0, 512)
        assert caught.value.errno == number


def test_a_server_of_something_else(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def greet() -> None:
            with listener.accept()[0] as peer:
                peer.sendall(b"SSH-2.0-")
                peer.recv(1)

        thread = Thread(target=greet)
        thread.start()
        with pytest.raises(ConnectionError, match="not an NBD server"):
            Nbd.connect(path, "data")
        thread.join(10)
        assert not thread.is_alive(), "the connection stays open"
