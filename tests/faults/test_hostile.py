"""Clients that mean harm, or do it: the server answers or drops them, keeps nothing of theirs, and serves all others.

NBD requests that break the protocol: tests/integration/test_nbd_malformed.py, and in C test_subsystem_nbd_hostile.c.
"""

from __future__ import annotations

import array
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from proof.nbd import Nbd
from tests.command import timezero
from tests.faults.conftest import descriptors, settled, threads
from tests.watching import until
from timezero import session

MIB = 1 << 20
SIZE = 4 * MIB

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def served(serve: Callable, tmp_path: Path):
    image = tmp_path / "data.img"
    image.write_bytes(os.urandom(SIZE))
    config = tmp_path / "serve.toml"
    config.write_text("[limits]\nconnections = 24\n")
    return serve({"data": image}, config=config)


@pytest.fixture(autouse=True)
def unharmed(served, tmp_path: Path) -> Iterator[None]:
    """Whatever a test did: nothing of it stays, and a backup works."""
    pid = served.process.pid
    with Nbd.connect(served.nbd_socket, "data") as witness:
        assert session.status(served.control)["sessions"] == []
        before = settled(pid) + 2, threads(pid)
        yield
        assert served.process.poll() is None
        witness._socket.settimeout(10)
        witness.write(0, b"w" * 4096)
        assert witness.read(0, 4096) == b"w" * 4096
        until(lambda: descriptors(pid) <= before[0], "descriptors stay")
        until(lambda: threads(pid) <= before[1] + 2, "threads stay")
        assert session.status(served.control)["sessions"] == []
        outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
        assert outcome.code == 0, outcome.err
    assert "Traceback" not in served.stderr() and "internal error" not in served.stderr()


class Control:
    """A raw control connection."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> dict:
        while b"\n" not in self._rest:
            piece = self.socket.recv(65536)
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def call(self, **fields: object) -> dict:
        self.send(json.dumps({"id": 1, **fields}).encode() + b"\n")
        return self.line()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


# ---- control traffic ----

GARBAGE = [
    b"\n", b"\0\n", b"{}\n", b"[]\n", b"null\n", b"1e999\n", b"NaN\n", b'"x"\n', b"\xff\xfe\n", b'{"id": 1}\n',
    b'{"id": -1, "op": "hello"}\n', b'{"id": 1.5, "op": "hello"}\n', b'{"id": 1, "op": ["hello"]}\n',
    b'{"id": 1, "op": "\\ud800"}\n', b'{"id": 1, "op": "prepare"}\n',
    b'{"id": 9999999999999999999999, "op": "status"}\n',
    b'{"id": 1, "op": "prepare", "session": "s", "volumes": ["data"], "memory_bytes": 1}\n',
    b'{"id": 1, "op": "prepare", "session": "s", "volumes": ["data"], "memory_bytes": 281474976710656}\n',
    b'{"id": 1, "op": "prepare", "session": "s", "volumes": ["data"], "track_size": 4097}\n',
    b'{"id": 1, "op": "prepare", "session": "s", "volumes": ["data", "data"]}\n',
    b'{"id": 1, "op": "prepare", "session": "s", "volumes": ["data"], "domain": ["log"]}\n',
    b'{"id": 1, "op": "prepare", "session": "s", "volumes": ["data"], "file_bytes": 4096}\n',
    b'{"id": 1, "op": "prepare", "session": "../s", "volumes": ["data"]}\n',
    b'{"id": 1, "op": "suspend", "session": "nobody", "deadline_us": 1}\n',
    b'{"id": 1, "op": "open", "session": "x"}\n',
    b'{"id": 1, "op": "end", "session": "x", "cancel": 7}\n', b'{"id": 1, "op": "report", "session": {"a": []}}\n',
    b"[" * 100_000 + b"\n", b'{"id": ' + b"9" * 100_000 + b', "op": "status"}\n', b"x" * 1_000_000 + b"\n",
]  # fmt: skip


def test_garbage_is_answered_and_the_connection_goes_on(served) -> None:
    with Control(served.control) as control:
        for line in GARBAGE:
            control.send(line)
            reply = control.line()
            assert reply["ok"] is False, (line[:80], reply)
            assert reply["error"]["code"] in ("bad-request", "unknown-session", "limit"), (line[:80], reply)
        assert control.call(op="hello", version=1)["ok"]


def test_noise(served) -> None:
    generator = random.Random(5)
    for _ in range(30):
        with Control(served.control) as control, suppress(OSError):
            control.send(generator.randbytes(generator.randrange(1, 20_000)))
            control.socket.shutdown(socket.SHUT_WR)
            while control.socket.recv(65536):
                pass


def test_a_line_without_an_end(served) -> None:
    with Control(served.control) as control, suppress(ConnectionError):
        for _ in range(40):
            control.send(b"y" * 65536)
        assert control.line()["error"]["code"] == "bad-request"
        with pytest.raises(EOFError):
            control.line()


def test_requests_whose_answers_nobody_reads(served) -> None:
    """Dropped after ten seconds; others are answered all the while."""
    with Control(served.control) as deaf:
        deaf.socket.settimeout(0.5)
        with suppress(OSError):
            for _ in range(200):
                deaf.send(b'{"id": 1, "op": "status"}\n' * 100)
        assert session.status(served.control)["volumes"]
        deaf.socket.settimeout(30)
        dropped = False
        began = time.monotonic()
        while not dropped and time.monotonic() - began < 30:
            try:
                deaf.send(b"\n")
                time.sleep(0.2)
            except OSError:
                dropped = True
        assert dropped


def test_descriptors_that_nobody_asked_for(served) -> None:
    """They are closed, with every kind of line, and do not get out of hand while it is not finished."""
    files = [os.memfd_create(str(number)) for number in range(200)]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    before = descriptors(served.process.pid)
    with ExitStack() as stack:
        for line in (b'{"id": 1, "op": "status"}\n', b"{", b"nonsense\n", b'{"id": 1, "op": "status", "fds": 200}\n'):
            control = stack.enter_context(Control(served.control))
            for _ in range(5):
                control.socket.sendmsg([line], rights)
            time.sleep(0.1)
        assert descriptors(served.process.pid) <= before + 8
        # The same in the middle of an NBD connection, and in its handshake.
        nbd = stack.enter_context(Nbd.connect(served.nbd_socket, "data"))
        header = struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 512)
        nbd._socket.sendmsg([header], rights)
        assert nbd._receive(16)[4:8] == bytes(4)
        nbd._receive(512)
        shy = stack.enter_context(socket.socket(socket.AF_UNIX))
        shy.connect(served.nbd_socket)
        shy.sendmsg([b"\0\0\0\3"], rights)
        time.sleep(0.1)
        assert descriptors(served.process.pid) <= before + 12
    for file in files:
        os.close(file)


def test_more_control_connections_than_there_may_be(served) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(Control(served.control)) for _ in range(100)]
        answers = []
        for control in crowd:
            with suppress(OSError):
                control.send(b'{"id": 1, "op": "status"}\n')
            answers.append(control.line())
        refused = [reply for reply in answers if not reply["ok"]]
        assert len(refused) == 100 - 64
        assert all(reply["error"]["code"] == "limit" for reply in refused)
    until(lambda: _works(served), "there is no room after they have gone")


def _works(served) -> bool:
    with suppress(Exception):
        return bool(session.status(served.control)["volumes"])
    return False


def test_a_session_of_somebody_else(served) -> None:
    with Control(served.control) as owner, Control(served.control) as thief:
        assert owner.call(op="prepare", session="mine", volumes=["data"], memory_bytes=MIB)["ok"]
        for op, more in (("report", {}), ("end", {"cancel": True}), ("suspend", {"deadline_us": 1000}), ("abort", {}),
                         ("prepare", {"volumes": ["data"]})):  # fmt: skip
            reply = thief.call(op=op, session="mine", **more)
            assert reply["ok"] is False and reply["error"]["code"] in ("unknown-session", "bad-request"), reply
        assert owner.call(op="report", session="mine")["parts"][0]["state"] == "prepared"


def test_half_closed_with_a_session(served) -> None:
    """Who says that nothing more comes has given up what was his."""
    with Control(served.control) as control:
        assert control.call(op="prepare", session="mine", volumes=["data"], memory_bytes=MIB)["ok"]
        control.socket.shutdown(socket.SHUT_WR)
        until(lambda: session.status(served.control)["sessions"] == [], "the session stays")


# ---- NBD ----


def test_a_thousand_that_say_nothing(served) -> None:
    """Slow loris: they take all places of the handshake, and one in earnest gets in all the same."""
    with ExitStack() as stack:
        for number in range(1000):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(served.nbd_socket)  # when places and backlog are full: until the oldest make room
            with suppress(OSError):
                client.send(b"\0" if number % 2 else b"")
        began = time.monotonic()
        while True:
            try:
                with Nbd.connect(served.nbd_socket, "data") as good:
                    assert len(good.read(0, 512)) == 512
                break
            except OSError:
                assert time.monotonic() - began < 30
        assert time.monotonic() - began < 8


def test_a_handshake_has_a_time_limit(served) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(served.nbd_socket)
        began = time.monotonic()
        client.recv(18)
        client.sendall(b"\0\0\0\3")
        for byte in b"IHAVEOPT":  # ever so slowly
            with suppress(OSError):
                client.send(bytes([byte]))
            time.sleep(1.5)
        with suppress(ConnectionError):
            assert client.recv(1) == b""
        assert 8 < time.monotonic() - began < 20


def test_more_connections_than_a_volume_may_have(served) -> None:
    with ExitStack() as stack:
        inside = 0
        for _ in range(60):
            try:
                client = Nbd.connect(served.nbd_socket, "data")
                client._socket.settimeout(10)
                client.read(0, 512)
            except OSError:
                continue
            stack.callback(client.close)
            inside += 1
        assert inside == 24 - 1  # the witness is one
    until(lambda: session.status(served.control)["volumes"][0]["connections"] == 1, "connections stay")


def test_clients_that_do_not_read_their_replies(served, tmp_path: Path) -> None:
    """Their requests are carried out, their replies wait, and the suspension of a backup waits for none of them."""
    with ExitStack() as stack:
        for number in range(10):
            client = stack.enter_context(Nbd.connect(served.nbd_socket, "data"))
            client._socket.setblocking(False)
            read = struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, MIB)
            write = struct.pack(">IHHQQI", 0x25609513, 0, 1, 7, number * 65536, 4096) + b"d" * 4096
            with suppress(BlockingIOError):
                for _ in range(300):
                    client._socket.send(read + write)
            stack.callback(client._socket.close)
        outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
        assert outcome.code == 0, outcome.err


def test_half_open_connections(served) -> None:
    """Gone in the middle of a request, of a payload, of a reply."""
    for cut in (1, 27, 28, 1000):
        client = Nbd.connect(served.nbd_socket, "data")
        data = struct.pack(">IHHQQI", 0x25609513, 0, 1, 7, 65536, 4096) + b"h" * 4096
        client._socket.sendall(data[:cut])
        client._socket.shutdown(socket.SHUT_WR)
        client._socket.settimeout(10)
        with suppress(ConnectionError):
            assert client._socket.recv(1) == b""
        client._socket.close()
    with Nbd.connect(served.nbd_socket, "data") as witness:
        assert witness.read(65536, 4096) != b"h" * 4096
