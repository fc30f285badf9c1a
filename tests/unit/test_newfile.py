"""A file that replaces another: what a killed one left under a temporary name goes, what a live one writes stays."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from timezero.jobs import newfile
from timezero.jobs.newfile import NewFile, PartialFile
from timezero.repository import names


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    (tmp_path / "image").write_bytes(b"old")
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=["without a name", "with a temporary name"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems that have no files without names, too."""
    if request.param == "with a temporary name":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # which cannot be opened for writing: EISDIR


def kill_one(tmp_path: Path) -> str:
    """Replace the image and die before the last step; the name that is left."""
    pid = os.fork()
    if pid == 0:
        newfile.crash_point = lambda name: os._exit(9)
        try:
            NewFile(os.open(tmp_path, os.O_PATH), "image").publish(replace=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    [left] = tmp_path.glob(".timezero-*.tmp")
    return left.name


def replace(directory: int, content: bytes) -> None:
    new = NewFile(directory, "image")
    os.write(new.fd, content)
    new.publish(replace=True)
    new.close()


def test_the_next_one_removes_what_a_killed_one_left(kind: None, directory: int, tmp_path: Path) -> None:
    kill_one(tmp_path)
    replace(directory, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"image": b"new"}


def test_what_a_live_one_writes_stays(kind: None, directory: int, tmp_path: Path, monkeypatch) -> None:
    other = NewFile(directory, "image")
    os.write(other.fd, b"other")

    def meanwhile(name: str) -> None:
        monkeypatch.setattr(newfile, "crash_point", lambda name: None)
        replace(directory, b"new")
        assert (tmp_path / "image").read_bytes() == b"new"

    monkeypatch.setattr(newfile, "crash_point", meanwhile)
    other.publish(replace=True)
    other.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"image": b"other"}


def test_files_of_other_names_are_left_alone(kind: None, directory: int, tmp_path: Path) -> None:
    left = kill_one(tmp_path)
    new = NewFile(directory, "another")
    new.publish(replace=True)
    new.close()
    assert {path.name for path in tmp_path.iterdir()} == {"image", "another", left}


def at_the_first_lock(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """Somebody else's turn comes in the moment between making a file and locking it."""
    lock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        meanwhile()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)


def test_one_that_is_not_locked_yet_is_swept_and_made_again(
    named: None, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one, who sweeps it, has written so far is not published in its place."""
    others: list[NewFile] = []

    def other() -> None:
        others.append(NewFile(directory, "image"))
        os.write(others[0].fd, b"hal")

    at_the_first_lock(monkeypatch, other)
    new = NewFile(directory, "image")
    os.write(new.fd, b"new")
    new.publish(replace=True)
    assert (tmp_path / "image").read_bytes() == b"new"
    os.write(others[0].fd, b"f and half")
    others[0].publish(replace=True)
    new.close()
    others[0].close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"image": b"half and half"}


def test_one_that_is_being_swept_is_made_again(
    named: None, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = -1

    def begin() -> None:
        nonlocal sweeper
        (left,) = tmp_path.glob(".timezero-*.tmp")
        sweeper = os.open(left, os.O_RDWR)
        fcntl.flock(sweeper, fcntl.LOCK_EX)

    at_the_first_lock(monkeypatch, begin)
    new = NewFile(directory, "image")
    os.unlink(os.readlink(f"/proc/self/fd/{sweeper}"))
    os.close(sweeper)
    os.write(new.fd, b"new")
    new.publish(replace=True)
    new.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"image": b"new"}


@pytest.mark.parametrize("replace", [True, False])
def test_what_has_come_under_its_temporary_name_is_left_alone(
    named: None, directory: int, tmp_path: Path, replace: bool
) -> None:
    (tmp_path / "image").unlink()
    new = NewFile(directory, "image")
    (left,) = tmp_path.glob(".timezero-*.tmp")
    left.unlink()
    left.write_bytes(b"another's")
    with pytest.raises(FileNotFoundError):
        new.publish(replace=replace)
    new.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {left.name: b"another's"}


def test_sweeping_where_locks_are_the_servers(
    kind: None, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with NFS: an exclusive lock takes a descriptor that may write."""
    lock = fcntl.flock

    def served(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", served)
    kill_one(tmp_path)
    replace(directory, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"image": b"new"}


@pytest.mark.parametrize("owner", [12345, 54321])
def test_a_partial_file_may_have_its_owner_already(root: None, directory: int, tmp_path: Path, owner: int) -> None:
    """A kill between giving the owner and naming: the next one goes on. A stranger's is in the way."""
    partial = tmp_path / names.partial_name("new")
    partial.write_bytes(b"begun")
    os.chown(partial, owner, owner)
    partial.chmod(0o4755)
    if owner == 54321:
        with pytest.raises(FileExistsError):
            PartialFile(directory, "new", 12345)
        return
    new = PartialFile(directory, "new", 12345)
    status = os.fstat(new.fd)
    assert new.resumed
    assert (status.st_uid, status.st_mode & 0o7777) == (os.geteuid(), 0o600)
    new.publish(replace=False)
    new.close()
    assert (tmp_path / "new").read_bytes() == b"begun"
