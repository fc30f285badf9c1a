"""The power goes at the repository: whatever state its disk is found in opens, and lists whole recovery points only.

Real commands on real file systems (ext4, xfs) on a block device that keeps the order of writes and flushes; they
recover by themselves, when each state is mounted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import timezero
from proof.power import Recorder, State, States
from proof.stack import fuse_file, loop_device, mounted_export, mounted_image
from tests.command import environment, image
from timezero.errors import NoRepositoryError, VerificationError
from timezero.repository import Repository

MIB = 1 << 20
DISK = 32 * MIB
DATA = 2 * MIB + 1000
IN_BETWEEN = 30
COMMAND = "import sys; from timezero.cli import main; sys.exit(main())"

#: Breaches of the order of a commit, each of which some state must show.
NO_INDEX_SYNC = """
import os
from timezero.repository import durable
def write_new(path, *pieces, mode=0o600):
    fsync = os.fsync
    if path.endswith(".idx"):
        os.fsync = lambda fd: None
    try:
        honest(path, *pieces, mode=mode)
    finally:
        os.fsync = fsync
honest, durable.write_new = durable.write_new, write_new
"""
NO_SYNC = "import os; os.fsync = lambda fd: None\n"


MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
#: Newer versions of xfsprogs make nothing below 300 MiB, but for tests, which they know by these.
FOR_TESTS = dict.fromkeys(("TEST_DIR", "TEST_DEV", "QA_CHECK_FS"), "1")


@pytest.fixture(scope="module", params=MAKE)
def empty(request: pytest.FixtureRequest, root: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A disk with an empty file system."""
    disk = tmp_path_factory.mktemp("disk") / "disk.img"
    disk.write_bytes(bytes(DISK))
    subprocess.run([*MAKE[request.param], disk], check=True, timeout=60, env=os.environ | FOR_TESTS)
    return disk.read_bytes()


def record(folder: Path, empty: bytes, breach: str = "") -> Recorder:
    """Two backups, a prune of the first, and a third one."""

    def command(*words: object) -> None:
        code = [sys.executable, "-c", breach + COMMAND, *map(str, words)]
        subprocess.run(code, check=True, capture_output=True, timeout=60, env=environment())

    with Recorder(folder / "disk.sock", empty) as recorder, mounted_export(recorder.uri, folder / "disk") as point:
        repository = point / "repository"
        for number in range(3):
            if number == 2:
                kept = Repository(str(repository)).ids()
                recorder.mark("pruning")
                command("prune", "--repo", repository, "--keep", 1)
                recorder.mark(f"- {kept[0]}")
            source = image(folder / "data.img", DATA, seed=number)
            command("backup", "--repo", repository, f"data={source}")
            recorder.mark(f"+ {Repository(str(repository)).ids()[-1]}")
    return recorder


class Judge:
    """Mounts states, one after the other, and looks at the repository on each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listed = 0

    def look(self, state: State, *, prune: bool = True) -> str:
        """What is wrong; nothing when all is as promised."""
        disk = self._folder / "state.img"
        disk.write_bytes(state.content)
        with mounted_image(disk, self._folder / "state", "rw") as point:
            return self._judge(point / "repository", state, prune)

    def _judge(self, path: Path, state: State, prune: bool) -> str:
        present = {told[2:] for told in state.told if told.startswith("+")}
        gone = {told[2:] for told in state.told if told.startswith("-")}
        try:
            repository = Repository(str(path))
        except NoRepositoryError:
            return f"{state.name}: no repository, and there was one" if present else ""
        except VerificationError as error:
            return f"{state.name}: {error}"
        good, damaged = repository.points()
        ids = {point.id for point in good}
        if damaged:
            return f"{state.name}: listed and damaged: {damaged}"
        needed = present - gone
        if state.told[-1:] == ("pruning",):
            needed = {max(present)}
        if not needed <= ids or ids & gone:
            return f"{state.name}: {sorted(ids)} are there; {sorted(needed)} should be, {sorted(gone)} should not"
        if ids:
            self.listed += 1
            if (result := timezero.verify(str(path))).damage:
                return f"{state.name}: {result.damage}"
        return self._sweep(repository, state) if prune else ""

    def _sweep(self, repository: Repository, state: State) -> str:
        repository.prune()
        owners = {path.name[:25] for path in Path(repository.packs_path).glob("*")}
        left = owners - set(repository.ids()) | set(repository.directories()) - set(repository.ids())
        return f"{state.name}: prune leaves {left}" if left else ""


def states(empty: bytes, recorder: Recorder) -> Iterator[State]:
    """After every flush, and at random moments in between."""
    found = States(empty, recorder.events)
    assert found.flushes > 20, "flushes do not arrive at the disk"
    yield from found.after_each_flush()
    yield from found.in_between(IN_BETWEEN, seed=1)


def test_every_state_lists_whole_recovery_points_only(empty: bytes, tmp_path: Path) -> None:
    recorder = record(tmp_path, empty)
    judge = Judge(tmp_path)
    wrong = [problem for state in states(empty, recorder) if (problem := judge.look(state))]
    assert wrong == []
    assert judge.listed > 20, "no state had anything to lose"


@pytest.mark.parametrize("breach", [NO_INDEX_SYNC, NO_SYNC], ids=["index not synced", "nothing synced"])
def test_a_breach_of_the_order_shows(empty: bytes, tmp_path: Path, breach: str) -> None:
    recorder = record(tmp_path, empty, breach)
    judge = Judge(tmp_path)
    found = States(empty, recorder.events)
    assert any(judge.look(state, prune=False) for state in found.after_each_flush())


def test_the_recorder_tells_what_the_device_was_told(root: None, tmp_path: Path) -> None:
    """Bytes, order and flushes, through nbdfuse and a loop device."""
    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder(tmp_path / "disk.sock", bytes(MIB)))
        device = stack.enter_context(loop_device(stack.enter_context(fuse_file(recorder.uri, tmp_path / "fuse"))))
        descriptor = os.open(device, os.O_RDWR)
        stack.callback(os.close, descriptor)
        os.pwrite(descriptor, b"a" * 4096, 8192)
        os.fsync(descriptor)
        recorder.mark("a")
        os.pwrite(descriptor, b"b" * 4096, 8192)
        os.fsync(descriptor)
    found = list(States(bytes(MIB), recorder.events).after_each_flush())
    contents = {state.content[8192:12288]: state.told for state in found}
    assert contents == {bytes(4096): (), b"a" * 4096: ("a",), b"b" * 4096: ("a",)}
