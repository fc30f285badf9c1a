"""System calls that Python lacks, on real files, devices and file systems."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from timezero import _linux
from timezero._linux import calls

MIB = 1 << 20


def make_image(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def mkfs(kind: str, image: Path) -> Path:
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True, timeout=60)
    return image


@pytest.fixture
def ext4(tmp_path: Path, loop: Callable[..., Path], mount: Callable[..., Path]) -> tuple[Path, Path]:
    """(device, mount point)"""
    device = loop(mkfs("ext4", make_image(tmp_path / "ext4.img", 64 * MIB)))
    return device, mount(device, tmp_path / "ext4")


def test_freeze_holds_writers_until_thaw(ext4: tuple[Path, Path]) -> None:
    _, point = ext4
    fd = os.open(point, os.O_RDONLY)
    writer = threading.Thread(target=lambda: (point / "held").write_bytes(b"held"))
    try:
        _linux.freeze(fd)
        try:
            with pytest.raises(OSError) as again:
                _linux.freeze(fd)
            assert again.value.errno == errno.EBUSY
            writer.start()
            writer.join(0.2)
            assert writer.is_alive()
        finally:
            _linux.thaw(fd)
        writer.join(30)
        assert not writer.is_alive()
        assert (point / "held").read_bytes() == b"held"
        with pytest.raises(OSError) as twice:
            _linux.thaw(fd)
        assert twice.value.errno == errno.EINVAL
    finally:
        os.close(fd)


def test_freeze_is_refused_to_those_who_may_not(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from timezero._linux import freeze\n"
        "fd = os.open('/', os.O_RDONLY)\n"
        "if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)\n"
        "try: freeze(fd)\n"
        "except PermissionError: sys.exit(42)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 42, done.stderr


def test_fiemap_says_where_the_bytes_are(ext4: tuple[Path, Path]) -> None:
    device, point = ext4
    pieces = {0: os.urandom(65536), 8 * MIB: os.urandom(4096)}
    with (point / "file").open("wb") as file:
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
    with (point / "file").open("rb") as file:
        extents = _linux.fiemap(file.fileno())
    assert sum(extent.length for extent in extents) == sum(map(len, pieces.values()))
    subprocess.run(["blockdev", "--flushbufs", device], check=True, timeout=60)
    with device.open("rb") as raw:
        for extent in extents:
            start = max(offset for offset in pieces if offset <= extent.logical)
            raw.seek(extent.physical)
            assert raw.read(extent.length) == pieces[start][extent.logical - start :][: extent.length]


def test_fiemap_goes_on_past_a_batch(ext4: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, point = ext4
    monkeypatch.setattr(calls, "_FIEMAP_BATCH", 7)
    with (point / "sieve").open("wb") as file:
        for number in range(40):
            file.seek(number * 16384)
            file.write(b"x" * 4096)
    with (point / "sieve").open("rb") as file:
        extents = _linux.fiemap(file.fileno())
    assert [extent.logical for extent in extents] == [number * 16384 for number in range(40)]


def test_fiemap_where_there_is_none() -> None:
    with open("/proc/self/stat", "rb") as file, pytest.raises(OSError) as refused:
        _linux.fiemap(file.fileno())
    assert refused.value.errno in (errno.EOPNOTSUPP, errno.ENOTTY)


def test_rename_never_replaces(tmp_path: Path) -> None:
    old, new, taken = (tmp_path / name for name in ("old", "new", "taken"))
    old.write_text("old")
    taken.write_text("taken")
    with pytest.raises(FileExistsError) as refused:
        _linux.rename_noreplace(old, taken)
    assert (refused.value.filename, refused.value.filename2) == (str(old), str(taken))
    assert old.read_text() == "old"
    _linux.rename_noreplace(old, new)
    with pytest.raises(FileNotFoundError):
        _linux.rename_noreplace(old, new)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "old", "taken": "taken"}


def test_direct_alignment_is_what_direct_reads_need(ext4: tuple[Path, Path]) -> None:
    _, point = ext4
    path = make_image(point / "file", MIB)
    alignment = _linux.direct_alignment(path)
    assert alignment is not None
    assert alignment.offset in (512, 1024, 2048, 4096)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert _linux.direct_alignment(fd) == alignment
        with mmap.mmap(-1, MIB) as memory, memoryview(memory) as view:
            piece = view[alignment.memory :][: alignment.offset]
            assert os.preadv(fd, [piece], alignment.offset) == alignment.offset
            piece.release()
    finally:
        os.close(fd)


def test_direct_alignment_of_a_directory_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(OSError) as refused:
        _linux.direct_alignment(tmp_path)
    assert refused.value.errno == errno.EOPNOTSUPP


def test_memfd_seals_work_here() -> None:
    _linux.memfd_seals()
