"""A backup of a served volume whose target, or whose sidefile's file tier, fails call by call, while the application
writes: nothing is committed, no session stays, and every write is on the volume."""

from __future__ import annotations

import errno
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proof.nbd import Nbd
from proof.shim import MAKING, READ, Shim
from tests.command import COMMAND, MIB, Outcome, digest, environment, image, timezero
from tests.faults.conftest import told
from tests.faults.sweep import MAY_FAIL, THREADS, sweep
from tests.watching import sessions, until
from timezero.jobs.backup import backup
from timezero.jobs.options import MoverOptions, SessionOptions
from timezero.jobs.restore import restore
from timezero.repository import Repository

SIZE = 2 * MIB
TRACK = 4096
#: That it gives way is not the point here.
FULL = MoverOptions(mode="full")

pytestmark = pytest.mark.timeout(600)


class Application:
    """Writes 1, 2, 3, ... to one place of a volume after the other, round and round: a content tells its instant."""

    PLACES = 16
    STRIDE = SIZE // PLACES

    def __init__(self, served: Any, original: bytes) -> None:
        self._nbd = Nbd.connect(served.nbd_socket, "data")
        self._original = original
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.count = 0
        self.error: OSError | None = None
        for _ in range(self.PLACES):
            self._write_next()
        self._thread.start()

    def _write_next(self) -> None:
        number = self.count + 1
        self._nbd.write(number % self.PLACES * self.STRIDE, number.to_bytes(8, "big") * (TRACK // 8))
        self.count = number

    def _write(self) -> None:
        try:
            while not self._end.wait(0.002):
                self._write_next()
        except OSError as error:
            self.error = error

    def content(self, number: int) -> bytes:
        """The volume's, after that many writes."""
        found = bytearray(self._original)
        for last in range(number, number - self.PLACES, -1):
            at = last % self.PLACES * self.STRIDE
            found[at : at + TRACK] = last.to_bytes(8, "big") * (TRACK // 8)
        return bytes(found)

    def is_an_instant(self, content: bytes) -> bool:
        """Was it the volume's content at some time?"""
        heads = [content[at : at + 8] for at in range(0, SIZE, self.STRIDE)]
        return content == self.content(max(int.from_bytes(head, "big") for head in heads))

    def stop(self) -> None:
        self._end.set()
        self._thread.join(60)
        self._nbd.close()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return image(tmp_path / "data.img", SIZE)


def test_of_the_target(serve: Callable, volume: Path, tmp_path: Path, shims: Callable[[str], Shim]) -> None:
    shim, served, original = shims("job"), serve({"data": volume}), volume.read_bytes()
    application = Application(served, original)
    restored = tmp_path / "restored.img"

    def run(n: int) -> Outcome:
        repo = tmp_path / f"repo{n}"
        words = ("backup", "--repo", repo, "--control", served.control, "--mode", "full", "data")
        outcome = timezero(*words, env=shim.environment | THREADS)
        until(lambda: sessions(served) == [], "the session stays")
        names = [path.name for path in repo.rglob("*")] if repo.exists() else []
        if outcome.code:
            assert not [name for name in names if name.endswith((".json", ".idx", ".pack", ".tmp"))
                        and name != "repository.json"], names  # fmt: skip
        ids = Repository(str(repo)).ids() if outcome.code == 0 or (repo / "repository.json").exists() else []
        assert len(ids) == (outcome.code == 0)
        if n % 4 == 0:  # the next one is none the worse for it
            backup(str(repo), ["data"], session=SessionOptions(control=served.control), mover=FULL)
            ids = Repository(str(repo)).ids()
            assert len(ids) == 1 + (outcome.code == 0)
        for point in ids:
            restore(str(repo), point, str(restored), dataset="data", force=True)
            assert application.is_an_instant(restored.read_bytes())
        assert application.error is None
        return outcome

    try:
        well = sweep(shim, tmp_path / "repo", MAKING, (errno.EIO, errno.ENOSPC), run)
    finally:
        application.stop()
    assert well <= MAY_FAIL
    assert application.error is None
    assert volume.read_bytes() == application.content(application.count)


@pytest.fixture
def tiered(serve: Callable, volume: Path, tmp_path: Path) -> Any:
    """A server whose sidefiles hold little in memory, and the rest in `tier`."""
    (tmp_path / "tier").mkdir()
    return serve({"data": volume}, sidefile_path=tmp_path / "tier", sidefile_file="16M")


@pytest.fixture
def begun(tiered: Any, tmp_path: Path, shims: Callable[[str], Shim]) -> Iterator[tuple[subprocess.Popen[str], Shim]]:
    """A backup that was stopped just after its T0, and rules for it."""
    shim = shims("mover")
    words = ["backup", "--repo", tmp_path / "repo", "--control", tiered.control, "--track-size", "4K", "--rate", "1M",
             "--chunk-size", "64K", "--sidefile-memory", "256K", "data"]  # fmt: skip
    job = subprocess.Popen(
        [*COMMAND, *map(str, words)], env=environment(**shim.environment, **THREADS), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until(lambda: any(part["state"] == "active" for part in sessions(tiered)) or job.poll() is not None, "no T0")
        job.send_signal(signal.SIGSTOP)
        yield job, shim
    finally:
        if job.poll() is None:
            job.kill()
        job.communicate(timeout=60)


def test_a_file_tier_that_cannot_be_read(
    begun: tuple[subprocess.Popen[str], Shim], tiered: Any, volume: Path, tmp_path: Path
) -> None:
    """T0 of those tracks is gone: the backup fails, with its own line and code; the application notices nothing."""
    job, mover = begun
    mover.rule(0, READ, tmp_path / "tier", error=errno.EIO, per_million=1_000_000)
    expected = bytearray(volume.read_bytes())
    with Nbd.connect(tiered.nbd_socket, "data") as data:
        for at in range(SIZE // 2, SIZE, TRACK):  # more than the memory tier holds
            data.write(at, b"n" * TRACK)
        expected[SIZE // 2 :] = b"n" * (SIZE // 2)
        assert [part["state"] for part in sessions(tiered)] == ["active"]
        job.send_signal(signal.SIGCONT)
        _, err = job.communicate(timeout=60)
        assert job.returncode == 1, err
        told(err, "data: its session broke at byte", "Input/output error")
        assert mover.hits(0) > 0
        until(lambda: sessions(tiered) == [], "the session stays")
        assert Repository(str(tmp_path / "repo")).ids() == []
        assert data.read(0, SIZE) == expected
    after = timezero("backup", "--repo", tmp_path / "repo", "--control", tiered.control, "data")
    assert after.code == 0, after.err
    restored = timezero("restore", "--repo", tmp_path / "repo", "latest/data", tmp_path / "restored.img")
    assert restored.code == 0, restored.err
    assert digest(tmp_path / "restored.img") == digest(volume)
