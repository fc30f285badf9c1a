"""A file that replaces another: what a killed one left under a temporary name goes, what a live one writes stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from timezero.jobs import newfile
from timezero.jobs.newfile import NewFile


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
