"""Real devices that fail, fall silent, shrink and vanish: below a served volume, a backup's target, a sidefile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from proof.nbd import Nbd
from proof.words import FORESEEN
from tests.command import COMMAND, environment, timezero
from tests.faults.conftest import Device, told
from tests.watching import until
from timezero import session
from timezero.repository import Repository

MIB = 1 << 20
SIZE = 8 * MIB

pytestmark = pytest.mark.timeout(180)


class World:
    """A served device `bad`, a served file `good`, and a repository to be."""

    def __init__(self, served, bad: Device, folder: Path) -> None:
        self.served, self.bad, self.folder = served, bad, folder
        self.repo = folder / "repo"

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *map(str, words), "--control", self.served.control], env=environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def backup(self, *names: str, rate: str = "0") -> subprocess.Popen[str]:
        return self.start("backup", "--repo", self.repo, "--rate", rate, *names)

    def sessions(self) -> list[dict]:
        return session.status(self.served.control)["sessions"]

    def wait_for_t0(self) -> None:
        until(lambda: any(part["state"] == "active" for part in self.sessions()), "no session")

    def listed(self) -> list[str]:
        return Repository(str(self.repo)).ids()

    def good_is_served(self) -> None:
        """At once, and with a backup of its own."""
        with Nbd.connect(self.served.nbd_socket, "good") as good:
            good._socket.settimeout(10)
            good.write(0, b"g" * 4096)
            assert good.read(0, 4096) == b"g" * 4096
        job = self.backup("good")
        _, err = job.communicate(timeout=60)
        assert job.returncode == 0, err

    def all_is_well(self) -> None:
        assert self.served.process.poll() is None
        until(lambda: self.sessions() == [], "a session stays")
        job = self.backup("good", "bad")
        _, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
        verified = timezero("verify", "--repo", self.repo)
        assert verified.code == 0, verified.err


@pytest.fixture(params=["uring", "threads"])
def world(request: pytest.FixtureRequest, serve: Callable, device: Callable[..., Device], tmp_path: Path) -> World:
    bad = device("bad", SIZE)
    good = tmp_path / "good.img"
    good.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    bad.image.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    config = tmp_path / "serve.toml"
    config.write_text("[limits]\nvolume_answer_s = 1\nsidefile_answer_s = 1\n")
    served = serve({"good": good, "bad": bad.path}, config=config, env={"TIMEZERO_IO": request.param})
    return World(served, bad, tmp_path)


def test_a_read_error_at_copy(world: World) -> None:
    world.bad.fail("pread")
    job = world.backup("bad")
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1, err
    told(err, "bad: cannot be read at byte", "Input/output error")
    assert world.listed() == []
    world.bad.fail()
    world.all_is_well()


def test_a_read_error_of_one_of_two(world: World) -> None:
    world.bad.fail("pread")
    job = world.backup("good", "bad")
    _, err = job.communicate(timeout=60)
    assert job.returncode == 3, err
    told(err, "bad: cannot be read at byte", "holds the other datasets only")
    assert len(world.listed()) == 1
    assert timezero("verify", "--repo", world.repo).code == 0
    world.bad.fail()
    world.all_is_well()


def test_a_read_error_at_a_before_image(world: World) -> None:
    """The application's write goes on; the mover, stopped meanwhile, finds its session punctured."""
    job = world.backup("bad", rate="1M")
    world.wait_for_t0()
    job.send_signal(signal.SIGSTOP)
    world.bad.fail("pread")
    with Nbd.connect(world.served.nbd_socket, "bad") as bad:
        bad.write(SIZE - 65536, b"n" * 65536)
        with pytest.raises(OSError) as told_by_device:
            bad.read(0, 4096)
        assert told_by_device.value.errno == errno.EIO  # the application's own request, the device's own error
        world.bad.fail()
        assert bad.read(SIZE - 65536, 65536) == b"n" * 65536
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 5, err
    told(err, "T0 is lost", "the application was not harmed")
    assert world.listed() == []
    world.all_is_well()


def test_a_write_error_of_the_applications_own(world: World) -> None:
    """It is the application's, and nobody else's: the backup goes on, and is what the volume was."""
    before = world.bad.image.read_bytes()
    job = world.backup("bad", rate="4M")
    world.wait_for_t0()
    world.bad.fail("pwrite")
    with Nbd.connect(world.served.nbd_socket, "bad") as bad:
        with pytest.raises(OSError) as caught:
            bad.write(SIZE - 65536, b"n" * 65536)
        assert caught.value.errno == errno.EIO
        world.bad.fail()
        bad.write(SIZE - 65536, b"m" * 65536)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    restored = timezero("restore", "--repo", world.repo, "latest/bad", world.folder / "restored.img")
    assert restored.code == 0, restored.err
    assert (world.folder / "restored.img").read_bytes() == before


def test_a_device_that_falls_silent_at_a_before_image(world: World) -> None:
    job = world.backup("bad", rate="1M")
    world.wait_for_t0()
    job.send_signal(signal.SIGSTOP)
    bads = [Nbd.connect(world.served.nbd_socket, "bad") for _ in range(12)]
    world.bad.silence()
    for number, bad in enumerate(bads):  # more than the engines have threads for one file
        header = b"\x25\x60\x95\x13\0\0\0\1" + bytes(8)
        bad._socket.sendall(
            header + (SIZE - (number + 1) * 65536).to_bytes(8, "big") + (4096).to_bytes(4, "big") + b"n" * 4096
        )
    until(lambda: any(part["state"] == "punctured" for part in world.sessions()), "it waits for ever", 20)
    world.good_is_served()
    world.bad.answer()
    for bad in bads:
        bad._socket.settimeout(60)
        assert bad._receive(16)[4:8] == bytes(4)
        bad.close()
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 5, err
    told(err, "T0 is lost")
    world.all_is_well()


def test_a_device_that_falls_silent_at_copy(world: World) -> None:
    """The user is told within the deadline, and the session is over; the process itself may be the kernel's to end."""
    # The kernel keeps a process that waits for a user-space file system until that answers: the line comes before.
    job = world.start("backup", "--repo", world.repo, "--rate", "1M", "--device-deadline", "1s", "bad")
    world.wait_for_t0()
    world.bad.silence()
    try:
        assert job.stderr is not None
        began = time.monotonic()
        while (line := job.stderr.readline()).startswith(FORESEEN):
            pass
        assert time.monotonic() - began < 30
        told(line, "bad")
        until(lambda: world.sessions() == [], "the session stays", 30)
        world.good_is_served()
    finally:
        world.bad.answer()
    job.communicate(timeout=60)
    assert job.returncode == 1
    world.all_is_well()


def test_a_flush_error_of_the_applications_own(world: World) -> None:
    """As a write error: told to who asked for it, each time, and the backup goes on."""
    before = world.bad.image.read_bytes()
    job = world.backup("bad", rate="4M")
    world.wait_for_t0()
    world.bad.fail("flush")
    with Nbd.connect(world.served.nbd_socket, "bad") as bad:
        bad.write(SIZE - 65536, b"n" * 65536)
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                bad.flush()
            assert caught.value.errno == errno.EIO
        world.bad.fail()
        bad.flush()
        assert bad.read(SIZE - 65536, 65536) == b"n" * 65536
    _, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    restored = timezero("restore", "--repo", world.repo, "latest/bad", world.folder / "restored.img")
    assert restored.code == 0, restored.err
    assert (world.folder / "restored.img").read_bytes() == before


def lose(world: World, name: str, job: subprocess.Popen[str], go: Callable[[], None], *, updated: bool) -> str:
    """Go on with a backup of `name`, stopped after its T0, when `go` has taken the volume away; what it says.

    updated: the application has written where nothing can be read any more.
    """
    world.wait_for_t0()
    job.send_signal(signal.SIGSTOP)
    go()
    if updated:
        with Nbd.connect(world.served.nbd_socket, name) as volume, suppress(OSError):  # the device's own error, if any
            volume.write(SIZE - 65536, b"n" * 65536)
        until(lambda: any(part["state"] == "punctured" for part in world.sessions()), "it is not punctured")
    job.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == (5 if updated else 1), err
    assert world.listed() == []
    return err


@pytest.mark.parametrize("updated", [False, True], ids=["copy", "before-image"])
def test_a_device_that_vanishes(world: World, updated: bool) -> None:
    err = lose(world, "bad", world.backup("bad", rate="1M"), world.bad.vanish, updated=updated)
    told(err, "bad", "T0 is lost" if updated else "cannot be read at byte")
    with Nbd.connect(world.served.nbd_socket, "bad") as bad, pytest.raises(OSError):
        bad.read(0, 4096)
    world.good_is_served()


@pytest.mark.parametrize("updated", [False, True], ids=["copy", "before-image"])
def test_a_file_that_shrinks_in_a_session(world: World, updated: bool) -> None:
    image = world.folder / "good.img"
    job = world.backup("good", rate="1M")
    err = lose(world, "good", job, lambda: os.truncate(image, SIZE // 2), updated=updated)
    told(err, "good", "T0 is lost" if updated else "was made shorter")


def test_a_file_that_shrinks(serve: Callable, tmp_path: Path) -> None:
    image = tmp_path / "data.img"
    image.write_bytes(os.urandom(SIZE))
    served = serve({"data": image})
    os.truncate(image, SIZE // 2)
    outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
    assert outcome.code == 1
    told(outcome.err, "data", "was made shorter")
    with Nbd.connect(served.nbd_socket, "data") as data, pytest.raises(OSError):
        data.read(SIZE - 4096, 4096)
    assert Repository(str(tmp_path / "repo")).ids() == []


def test_a_block_device_that_shrinks(serve: Callable, loop: Callable[..., Path], tmp_path: Path) -> None:
    """Below it: what is behind a loop device is cut off."""
    image = tmp_path / "data.img"
    image.write_bytes(os.urandom(SIZE))
    path = loop(image)
    served = serve({"data": path})
    os.truncate(image, SIZE // 2)
    outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
    # The loop device reads zeros, or fails, where its file has ended: the kernel's choice, and not to be told apart
    # from a device that holds zeros. What is listed verifies.
    assert outcome.code in (0, 1)
    if outcome.code:
        told(outcome.err, "data: cannot be read at byte")
    verified = timezero("verify", "--repo", tmp_path / "repo")
    assert verified.code == 0, verified.err


# ---- at rest ----


def test_read_errors_at_rest(device: Callable[..., Device], tmp_path: Path) -> None:
    bad = device("rest", SIZE)
    bad.image.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    bad.fail("pread")
    for words in (["backup", "--repo", tmp_path / "repo", "--fuzzy", bad.path],
                  ["copy", "--fuzzy", bad.path, tmp_path / "copy.img"]):  # fmt: skip
        outcome = timezero(*words)
        assert outcome.code == 1
        told(outcome.err, "cannot be read at byte", "Input/output error")
    assert Repository(str(tmp_path / "repo")).ids() == []
    assert not list(tmp_path.glob("*copy*"))


# ---- targets ----


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def frail(device: Callable[..., Device], loop: Callable[..., Path], mount: Callable[..., Path], tmp_path: Path):
    """(a file system on a device that may fail, the device). Its errors come when it is made durable."""
    disk = device("frail", 64 * MIB)
    block = loop(disk.path)
    subprocess.run(["mkfs.ext4", "-q", block], check=True, timeout=60)
    yield mount(block, tmp_path / "frail"), disk
    disk.fail()


@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_write_errors_of_a_repository(frail, source: Path, engine: str) -> None:
    folder, disk = frail
    disk.fail("pwrite", "zero")
    outcome = timezero("backup", "--repo", folder / "repo", source, env={"TIMEZERO_IO": engine})
    assert outcome.code == 1
    told(outcome.err, str(folder), "error")
    assert not list(folder.glob("repo/recovery-points/*/manifest.json"))


@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_write_errors_of_an_image(frail, source: Path, engine: str) -> None:
    folder, disk = frail
    disk.fail("pwrite", "zero")
    outcome = timezero("copy", source, folder / "copy.img", env={"TIMEZERO_IO": engine})
    assert outcome.code == 1
    told(outcome.err, "copy.img", "error")
    assert not list(folder.glob("*copy*"))


@pytest.mark.parametrize("job", ["backup", "copy", "copy to a device"])
def test_flush_errors_of_a_target(
    request: pytest.FixtureRequest, device: Callable[..., Device], loop: Callable[..., Path], source: Path, job: str
) -> None:
    """All of it is written, and nobody knows whether it stays: it has failed."""
    if job == "copy to a device":
        disk = device("target", SIZE)
        words: list[object] = ["copy", source, target := loop(disk.path)]
    else:
        folder, disk = request.getfixturevalue("frail")
        target = folder / ("repo" if job == "backup" else "copy.img")
        words = ["backup", "--repo", target, source] if job == "backup" else ["copy", source, target]
        if job == "backup":
            assert timezero(*words).code == 0
    disk.fail("flush")
    outcome = timezero(*words)
    disk.fail()
    assert outcome.code == 1
    told(outcome.err, str(target), "cannot be written" if job == "backup" else "durable", "Input/output error")
    if job == "backup":
        assert len(Repository(str(target)).ids()) == 1  # the one before
    elif job == "copy":
        assert not list(folder.glob("*copy*"))
    else:
        assert "blanked at both ends" in outcome.err


def test_write_errors_of_a_block_device(device: Callable[..., Device], loop: Callable[..., Path], source: Path) -> None:
    disk = device("target", SIZE)
    block = loop(disk.path)
    disk.fail("pwrite", "zero")
    outcome = timezero("copy", source, block)
    assert outcome.code == 1
    told(outcome.err, str(block), "Input/output error")
    disk.fail()


def test_a_block_device_whose_beginning_fails_is_blanked_at_its_end(
    loop: Callable[..., Path], source: Path, tmp_path: Path, shims: Callable
) -> None:
    from proof.shim import WRITE

    image = tmp_path / "target.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    block = loop(image)
    shim = shims("job")
    shim.rule(0, WRITE, block, error=errno.EIO, nth=8)  # of the chunks, the last
    shim.rule(1, WRITE, block, error=errno.EIO, nth=9)  # of the two that blank, the first
    outcome = timezero("copy", "--depth", 1, source, block, env=shim.environment | {"TIMEZERO_IO": "threads"})
    assert outcome.code == 1
    assert (shim.hits(0), shim.hits(1)) == (1, 1)
    content = image.read_bytes()
    assert content[:MIB] == bytes(MIB) or content[-MIB:] == bytes(MIB)
    assert content[MIB : 2 * MIB] == source.read_bytes()[MIB : 2 * MIB]


@pytest.fixture
def small(root: None, mount: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """small(kind): a file system with 4 MiB of room."""

    def make(kind: str) -> Path:
        if kind == "tmpfs":
            return mount(Path("tmpfs"), tmp_path / "small", "-t", "tmpfs", "-o", "size=4M")
        disk = tmp_path / "small.disk"
        with disk.open("wb") as file:
            file.truncate(6 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True, timeout=60)
        return mount(disk, tmp_path / "small", "-o", "loop")

    return make


@pytest.mark.parametrize("engine", ["uring", "threads"])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_no_space(small: Callable[[str], Path], source: Path, kind: str, engine: str) -> None:
    folder = small(kind)
    (folder / "repo").mkdir()
    env = {"TIMEZERO_IO": engine}
    for words in (["backup", "--repo", folder / "repo", source], ["copy", source, folder / "copy.img"]):
        outcome = timezero(*words, env=env)
        assert outcome.code == 1
        told(outcome.err, "cannot be written", "No space left on device")
        assert Repository(str(folder / "repo")).ids() == []
        left = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 4096]
        assert left == [], left
    with (folder / "copy.img").open("wb") as out:
        code, err = _to(out, source, env)
    assert code == 1
    told(err, "standard output: cannot be written", "No space left on device")


def _to(out, source: Path, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, "copy", str(source), "-"], stdout=out, stderr=subprocess.PIPE, text=True, env=environment(**env),
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_no_space_for_a_file_tier(small: Callable[[str], Path], serve: Callable, source: Path, tmp_path: Path) -> None:
    """It is told when the session is prepared, and not behind an update that is held."""
    served = serve({"data": source}, sidefile_path=small("ext4"), sidefile_file="64M")
    outcome = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "data")
    assert outcome.code == 1
    told(outcome.err, "file tier", "make room there")
    assert session.status(served.control)["sessions"] == []
    fits = timezero("backup", "--repo", tmp_path / "repo", "--control", served.control, "--sidefile-file", "1M", "data")
    assert fits.code == 0, fits.err
