"""Devices that do not answer: whoever waits for one has a deadline, and nobody else notices.

Here a device is silenced by the library that delays its calls (TIMEZERO_IO=threads), so that no root is needed and
nothing hangs in the kernel; tests/faults/test_devices.py does the same to a real one, for io_uring as well.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proof.nbd import Nbd
from proof.shim import READ, SYNC, WRITE, Shim
from tests.command import COMMAND, environment, timezero
from tests.faults.conftest import descriptors, settled, told
from tests.file_points import commit_files
from tests.watching import sessions, until
from timezero.repository import Repository

MIB = 1 << 20
SIZE = 8 * MIB
FOREVER_US = 600_000_000
ALWAYS = 1_000_000  # in a million
THREADS = {"TIMEZERO_IO": "threads"}

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.img" for name in ("good", "mute")}
    for path in paths.values():
        path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    return paths


@pytest.fixture
def shim(shims: Callable[[str], Shim]) -> Shim:
    return shims("server")


@pytest.fixture
def served(serve: Callable, images: dict[str, Path], shim: Shim, tmp_path: Path):
    (tmp_path / "tier").mkdir()
    config = tmp_path / "serve.toml"
    config.write_text("[limits]\nvolume_answer_s = 1\nsidefile_answer_s = 1\n")
    return serve(
        images, env=shim.environment | THREADS, config=config, sidefile_path=tmp_path / "tier", sidefile_file="16M"
    )


def start(*words: object, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, words)], env=environment(**env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_before_image_that_does_not_come(served, shim: Shim, images: dict[str, Path], tmp_path: Path) -> None:
    """Its session is punctured and ends; the update goes on when its device does; another volume is served as ever."""
    before = settled(served.process.pid)
    repo = tmp_path / "repo"
    job = start("backup", "--repo", repo, "--control", served.control, "--rate", "1M", "mute", env=THREADS)
    with Nbd.connect(served.nbd_socket, "mute") as mute, Nbd.connect(served.nbd_socket, "good") as good:
        until(lambda: any(part["state"] == "active" for part in sessions(served)), "no session")
        shim.rule(0, READ, images["mute"], delay_us=FOREVER_US, per_million=ALWAYS)
        mute._socket.settimeout(60)
        mute.write(SIZE - 8192, b"n" * 4096)  # is held for a second, and then passes: only reads are silent
        _, err = job.communicate(timeout=30)
        assert job.returncode == 5, err
        told(err, "T0 is lost")
        until(lambda: sessions(served) == [], "the session stays")
        began = time.monotonic()
        good.write(0, b"g" * 4096)
        assert good.read(0, 4096) == b"g" * 4096
        assert time.monotonic() - began < 5
        other = timezero("backup", "--repo", repo, "--control", served.control, "good", env=THREADS)
        assert other.code == 0, other.err
        shim.clear()
        assert mute.read(SIZE - 8192, 4096) == b"n" * 4096
    after = timezero("backup", "--repo", repo, "--control", served.control, "mute", env=THREADS)
    assert after.code == 0, after.err
    until(lambda: descriptors(served.process.pid) <= before, "descriptors of the session stay")
    assert "mute punctured (stalled)" in served.stderr()
    assert "its memory is kept until the device of mute answers" in served.stderr()


def test_a_file_tier_that_does_not_answer(served, shim: Shim, tmp_path: Path) -> None:
    """The application waits for it once, and no longer than it may."""
    job = start(
        "backup", "--repo", tmp_path / "repo", "--control", served.control, "--rate", "1M", "--sidefile-memory", "512K",
        "--track-size", "4K", "mute", env=THREADS,
    )  # fmt: skip
    with Nbd.connect(served.nbd_socket, "mute") as mute:
        until(lambda: any(part["state"] == "active" for part in sessions(served)), "no session")
        shim.rule(0, WRITE, tmp_path / "tier", delay_us=FOREVER_US, per_million=ALWAYS)
        began = time.monotonic()
        for track in range(200):
            mute.write(SIZE - (track + 1) * 4096, b"n" * 4096)
        assert 0.5 < time.monotonic() - began < 10
        assert shim.hits(0) >= 1
        _, err = job.communicate(timeout=30)
        assert job.returncode == 5, err
        told(err, "T0 is lost")
        shim.clear()
    assert Repository(str(tmp_path / "repo")).ids() == []


def test_a_volume_that_does_not_answer_the_mover(
    served, shims: Callable[[str], Shim], images: dict[str, Path], tmp_path: Path
) -> None:
    mover = shims("mover")
    mover.rule(0, READ, images["mute"], delay_us=FOREVER_US, per_million=ALWAYS)
    began = time.monotonic()
    outcome = timezero(
        "backup", "--repo", tmp_path / "repo", "--control", served.control, "--device-deadline", "1s", "mute",
        env=mover.environment | THREADS,
    )  # fmt: skip
    assert outcome.code == 1
    told(outcome.err, "mute: its device has not answered for", "--device-deadline")
    assert time.monotonic() - began < 20
    until(lambda: sessions(served) == [], "the session stays")
    assert Repository(str(tmp_path / "repo")).ids() == []


@pytest.mark.parametrize("calls", [WRITE, SYNC], ids=["write", "sync"])
def test_a_target_that_does_not_answer(
    served, shims: Callable[[str], Shim], tmp_path: Path, calls: int, images: dict[str, Path]
) -> None:
    """A write that is not answered ends the job; its session is over by the time that the target is made durable."""
    mover = shims("mover")
    mover.rule(0, calls, tmp_path / "repo" / "packs", delay_us=3_000_000 if calls == SYNC else FOREVER_US,
               per_million=ALWAYS)  # fmt: skip
    job = start(
        "backup", "--repo", tmp_path / "repo", "--control", served.control, "--device-deadline", "1s", "mute",
        env=mover.environment | THREADS,
    )  # fmt: skip
    with Nbd.connect(served.nbd_socket, "mute") as mute:
        until(lambda: mover.hits(0) > 0 or job.poll() is not None, "nothing is written")
        if calls == SYNC:
            until(lambda: sessions(served) == [], "a slow target keeps the session", 2)
        mute._socket.settimeout(20)
        began = time.monotonic()
        for at in range(0, SIZE, MIB):
            mute.write(at, b"n" * 4096)
        assert time.monotonic() - began < 5
    _, err = job.communicate(timeout=30)
    if calls == SYNC:
        assert job.returncode == 0, err
    else:
        assert job.returncode == 1, err
        told(err, "its device has not answered for")
    until(lambda: sessions(served) == [], "the session stays")


@pytest.mark.parametrize("job", ["verify", "restore", "restore of files"])
def test_a_pack_that_does_not_answer(
    shims: Callable[[str], Shim], images: dict[str, Path], tmp_path: Path, job: str
) -> None:
    """Whoever reads a repository is told, and does not wait for ever; a restore leaves nothing."""
    repo, target = tmp_path / "repo", tmp_path / "restored" / "image"
    target.parent.mkdir()
    if job == "restore of files":
        commit_files(repo, {"/good": images["good"]})
        words: list[object] = ["restore", "latest/data:/good", target.parent]
    else:
        assert timezero("backup", "--repo", repo, images["good"]).code == 0
        words = ["restore", "latest", target] if job == "restore" else ["verify"]
    shim = shims("job")
    shim.rule(0, READ, repo / "packs", delay_us=FOREVER_US, per_million=ALWAYS)
    began = time.monotonic()
    outcome = timezero(*words, "--repo", repo, "--device-deadline", "1s", env=shim.environment | THREADS)
    assert outcome.code == 1
    told(outcome.err, f"{repo / 'packs'}: its device has not answered for", "--device-deadline")
    assert time.monotonic() - began < 40
    assert shim.hits(0) > 0
    assert list(target.parent.iterdir()) == []


def test_a_target_of_a_delta_that_cannot_be_looked_at(
    shims: Callable[[str], Shim], images: dict[str, Path], tmp_path: Path
) -> None:
    """What cannot be read is written; what does not answer ends the job, and is as it was when nothing was written."""
    repo, target = tmp_path / "repo", tmp_path / "image"
    assert timezero("backup", "--repo", repo, images["good"]).code == 0
    target.write_bytes(before := images["mute"].read_bytes())
    words = ("restore", "--repo", repo, "latest", target, "--delta", "--force", "--device-deadline", "1s")
    shim = shims("job")
    shim.rule(0, READ, target, delay_us=FOREVER_US, per_million=ALWAYS)
    outcome = timezero(*words, env=shim.environment | THREADS)
    assert outcome.code == 1
    told(outcome.err, f"{target}: its device has not answered for", "--device-deadline")
    assert target.read_bytes() == before
    shim.rule(0, READ, target, error=errno.EIO, per_million=ALWAYS)
    outcome = timezero(*words, env=shim.environment | THREADS)
    assert outcome.code == 0, outcome.err
    assert shim.hits(0) >= SIZE // MIB
    assert target.read_bytes() == images["good"].read_bytes()


def test_a_suspension_that_waits_for_an_update(served, shim: Shim, images: dict[str, Path], tmp_path: Path) -> None:
    """The deadline of the suspension passes: there is no T0, and the application is where it was."""
    with Nbd.connect(served.nbd_socket, "mute") as mute:
        shim.rule(0, WRITE, images["mute"], delay_us=FOREVER_US, per_million=ALWAYS)
        mute._socket.sendall(request(1, 0, 4096) + b"w" * 4096)
        until(lambda: shim.hits(0) == 1, "the write is not issued")
        outcome = timezero(
            "backup", "--repo", tmp_path / "repo", "--control", served.control, "--deadline", "500ms", "mute"
        )  # fmt: skip
        assert outcome.code == 4
        told(outcome.err, "deadline")
        shim.clear()
        assert mute._receive(16)[4:8] == bytes(4)
        mute.write(0, b"x" * 4096)
    assert sessions(served) == []


def request(command: int, offset: int, length: int) -> bytes:
    import struct

    return struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length)


@pytest.mark.parametrize("words", [["--depth", 1], ["--depth", 1, "--delta"]], ids=["whole", "delta"])
def test_a_device_that_stops_taking_writes(
    shims: Callable[[str], Shim], images: dict[str, Path], loop: Callable[..., Path], tmp_path: Path, words: list
) -> None:
    """It is told within the deadline what the device now holds: blanking it would mean to wait for it."""
    repo, backing = tmp_path / "repo", tmp_path / "backing"
    assert timezero("backup", "--repo", repo, images["good"]).code == 0
    backing.write_bytes(images["mute"].read_bytes())
    target = loop(backing)
    shim = shims("job")
    shim.rule(0, WRITE, target, delay_us=FOREVER_US, nth=3)
    job = start("restore", "--repo", repo, "latest", target, "--device-deadline", "1s", *words,
                env=shim.environment | THREADS)  # fmt: skip
    try:
        until(lambda: shim.hits(0) == 1, "nothing is written")
        shim.rule(1, WRITE, target, delay_us=FOREVER_US, per_million=ALWAYS)  # nothing else, either
        _, err = job.communicate(timeout=40)
    finally:
        shim.clear()
        job.kill()
        job.wait(60)
    assert job.returncode == 1, err
    told(err, f"{target}: its device has not answered for", "mixture of old and new data and is not blanked")


def test_of_several_targets_only_the_silent_one_is_not_blanked(
    shims: Callable[[str], Shim], images: dict[str, Path], tmp_path: Path
) -> None:
    repo, directory = tmp_path / "repo", tmp_path / "disks"
    assert timezero("backup", "--repo", repo, images["good"], images["mute"]).code == 0
    directory.mkdir()
    for name in ("good", "mute"):
        (directory / images[name].name).write_bytes(b"\xee" * SIZE)
    silent, other = (directory / images[name].name for name in ("mute", "good"))
    shim = shims("job")
    shim.rule(0, WRITE, silent, delay_us=FOREVER_US, nth=1)
    outcome = timezero("restore", "--repo", repo, "latest", directory, "--delta", "--force", "--device-deadline", "1s",
                       env=shim.environment | THREADS)  # fmt: skip
    assert outcome.code == 1
    assert f"{silent}: its device has not answered for" in outcome.err
    assert f"{silent} now holds a mixture of old and new data and is not blanked" in outcome.err
    assert f"{other} now holds a mixture of old and new data and is blanked at both ends" in outcome.err
    assert other.read_bytes()[:MIB] == bytes(MIB)
