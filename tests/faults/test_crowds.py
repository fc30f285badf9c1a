"""Thousands of connections, over TCP and over a Unix socket: each is served, or closed at once, nobody else notices."""

from __future__ import annotations

import os
import resource
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import pytest

from proof.nbd import Nbd
from tests.faults.conftest import descriptors, settled, threads
from tests.integration.conftest import Served
from tests.watching import until, volume
from timezero import session

CROWD = 3000
ALLOWED = 128  # limits.connections, unless named
HELD = 64  # of these while the crowd comes and goes: it has a few at a time, and leaves without waiting for the server
AT_A_TIME = 8
FEW = 80  # descriptors, the soft limit that the server is started with
TIMEOUT = 60.0  # seconds

pytestmark = pytest.mark.timeout(240)

Where = str | tuple[str, int]


@pytest.fixture
def served(serve: Callable[..., Served], tmp_path: Path) -> Served:
    path = tmp_path / "data.img"
    path.write_bytes(os.urandom(1 << 20))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
    try:
        server = serve({"data": path}, nbd="nbd://127.0.0.1:0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return server


@pytest.fixture(params=["unix", "tcp"])
def where(served: Served, request: pytest.FixtureRequest) -> Where:
    if request.param == "unix":
        return served.nbd_socket
    [port] = [urlsplit(uri).port for uri in session.status(served.control)["nbd"] if uri.startswith("nbd://")]
    return "127.0.0.1", port


class Witness:
    """A client that writes and reads all the while. It must be answered, and right."""

    def __init__(self, where: Where) -> None:
        self._client = enter(where)
        self._over = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def _run(self) -> None:
        try:
            while not self._over.wait(0.002):
                data = struct.pack(">Q", self.rounds) * 512
                self._client.write(0, data)
                assert self._client.read(0, len(data)) == data
                self.rounds += 1
        except BaseException as error:
            self._failed = error

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._client.close()
        if self._failed:
            raise self._failed


def enter(where: Where) -> Nbd:
    """A connection that is served. Raises ConnectionError when it is closed instead, TimeoutError when neither."""
    client = Nbd.connect(where, "data")
    client._socket.settimeout(TIMEOUT)
    try:
        assert len(client.read(4096, 512)) == 512
    except BaseException:
        client._socket.close()
        raise
    return client


def come_and_go(where: Where) -> None:
    enter(where).close()


def test_three_thousand_come_and_go(served: Served, where: Where) -> None:
    pid = served.process.pid
    with Witness(where) as witness:
        before = settled(pid) + 2, threads(pid) + 2
        with ExitStack() as stack:
            for _ in range(HELD):
                stack.callback(enter(where).close)
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                list(pool.map(come_and_go, [where] * CROWD))
            until(lambda: volume(served, "data")["connections"] == HELD + 1, "connections of clients that left stay")
        until(lambda: descriptors(pid) <= before[0], "descriptors stay")
        until(lambda: threads(pid) <= before[1], "threads stay")
        rounds = witness.rounds
        until(lambda: witness.rounds > rounds, "the witness is not answered")
    assert "Traceback" not in served.stderr()


def test_as_many_as_there_may_be(served: Served, where: Where) -> None:
    """The soft limit that the server was started with is none of it; one too many is closed, and can come later."""
    pid = served.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert soft == hard > FEW
    with Witness(where) as witness:
        before = settled(pid) + 2, threads(pid) + 2
        with ExitStack() as stack:
            clients = [enter(where) for _ in range(ALLOWED - 1)]
            for client in clients:
                stack.callback(client.close)
            assert descriptors(pid) > FEW
            for _ in range(50):
                with pytest.raises(ConnectionError):
                    enter(where)
            for client in clients:
                assert len(client.read(0, 512)) == 512
            clients[0].close()
            until(lambda: volume(served, "data")["connections"] == ALLOWED - 1, "a connection stays")
            come_and_go(where)
            rounds = witness.rounds
            until(lambda: witness.rounds > rounds, "the witness is not answered")
        until(lambda: volume(served, "data")["connections"] == 1, "connections stay")
        until(lambda: descriptors(pid) <= before[0], "descriptors stay")
        until(lambda: threads(pid) <= before[1], "threads stay")
    assert "Traceback" not in served.stderr()
