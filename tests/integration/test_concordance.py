"""The concordance on real file systems: what lies at the mapped places while frozen is what the files hold."""

from __future__ import annotations

import mmap
import os
import resource
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.concordance import TRACK, Frozen, content, designate, extents, read_physically
from tests.integration.filesystems import KINDS, MIB, FileSystem, file_system, run
from timezero._native.bitmap import Bitmap
from timezero.concordance.freezer import Freezer
from timezero.concordance.mapping import map_files
from timezero.concordance.metadata import Metadata
from timezero.concordance.selection import Selection, resolve
from timezero.errors import TimezeroError, UsageError


def test_files_equal_what_lies_at_the_mapped_places(system: FileSystem, place: Path) -> None:
    sieve, holes, unwritten, tail = (place / name for name in ("sieve", "holes", "unwritten", "tail"))
    with sieve.open("wb") as file:  # fragments
        for number in range(300):
            file.seek(number * 12288)
            file.write(content(f"sieve {number}", 4096))
    with holes.open("wb") as file:
        file.write(content("begin", 5000))
        file.seek(3 * MIB + 1234)
        file.write(content("middle", 70_000))
        file.truncate(8 * MIB + 17)
    with unwritten.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * MIB)
        file.seek(MIB)
        file.write(content("in the middle of what is preallocated", 100_000))
    tail.write_bytes(content("tail", 2 * MIB + 1))
    preallocated = place / "preallocated"
    with preallocated.open("wb") as file:
        file.write(content("short", 10_000))
        file.flush()
        run("fallocate", "--keep-size", "--length", str(4 * MIB), preallocated)
    (place / "small").write_bytes(b"x")
    (place / "empty").touch()
    expected = {str(path): path.read_bytes() for path in place.iterdir()}

    with designate(system, place) as designated:
        assert [d.name for d in designated] == sorted(f"data:{path}" for path in expected)
        frozen = Frozen(system, designated)
    assert frozen.files == expected
    assert int(frozen.map_of(preallocated).length.sum()) == 12288
    assert int(frozen.map_of(unwritten).length.sum()) < 300_000
    assert int(frozen.map_of(holes).length.sum()) < MIB
    assert len(frozen.map_of(place / "empty").logical) == 0


def test_data_that_is_dirty_or_mapped_when_it_is_frozen(system: FileSystem, place: Path) -> None:
    """Nothing is synced beforehand but by freezing itself: delayed allocation, and pages that a mapping has dirtied."""
    (place / "mapped").write_bytes(bytes(MIB))
    with (place / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), MIB) as memory:
        (place / "new").write_bytes(content("new", 3 * MIB))
        memory[:] = content("mapped", MIB)
        with designate(system, place) as designated, Freezer([system.point]) as freezer:
            freezer.freeze(30)
            found = {f.dataset.path: read_physically(system.image, f) for f in map_files(designated)}
            freezer.thaw()
    assert found == {str(place / "new"): content("new", 3 * MIB), str(place / "mapped"): content("mapped", MIB)}


def test_domain_is_the_tracks_of_the_files(system: FileSystem, place: Path) -> None:
    for number in range(50):
        (place / f"{number}").write_bytes(content(f"{number}", 1 + number * 3000))
    with designate(system, place) as designated:
        concordance = Frozen(system, designated).concordance
    tracks = system.image.stat().st_size // TRACK
    domain = concordance.domain("data", TRACK, tracks)
    expected = set()
    for file in concordance:
        for _, physical, length in extents(file):
            expected |= set(range(physical // TRACK, (physical + length - 1) // TRACK + 1))
    assert set(domain.positions().tolist()) == expected
    assert concordance.domain("another", TRACK, tracks).count() == 0
    shared = Bitmap(tracks)
    assert concordance.domain("data", TRACK, tracks, shared) is shared
    assert set(shared.positions().tolist()) == expected
    with pytest.raises(TimezeroError, match="past its end"):
        concordance.domain("data", TRACK, min(expected))


def test_renamed_deleted_and_replaced_after_selection(system: FileSystem, place: Path) -> None:
    for name in ("kept", "renamed", "deleted", "replaced", "linked over"):
        (place / name).write_bytes(content(name, 20_000))
    with designate(system, place) as designated:
        (place / "renamed").rename(place / "elsewhere")
        (place / "deleted").unlink()
        (place / "fresh").write_bytes(content("fresh", 30_000))
        (place / "fresh").rename(place / "replaced")
        (place / "linked over").unlink()
        (place / "linked over").symlink_to("kept")
        with (place / "kept").open("ab") as file:
            file.write(b"and more")
        frozen = Frozen(system, designated)
        assert len(designated) == 2
    assert frozen.files == {
        str(place / "kept"): content("kept", 20_000) + b"and more",
        str(place / "replaced"): content("fresh", 30_000),
    }
    assert frozen.concordance.gone == [f"data:{place / name}" for name in ("deleted", "linked over", "renamed")]


def test_a_whole_directory_replaced_after_selection(system: FileSystem, place: Path) -> None:
    """No file of it was touched, and yet its names mean others."""
    (place / "current").mkdir()
    (place / "current" / "file").write_bytes(b"old")
    with designate(system, place / "current") as designated:
        (place / "current").rename(place / "before")
        (place / "current").mkdir()
        (place / "current" / "file").write_bytes(b"new")
        frozen = Frozen(system, designated)
    assert frozen.files == {str(place / "current" / "file"): b"new"}


def test_a_sparse_file_of_100_gib(system: FileSystem, place: Path) -> None:
    sparse = place / "sparse"
    pieces = {0: b"first", 50 << 30: b"middle", (100 << 30) - 4: b"last"}
    with sparse.open("wb") as file:
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
    with designate(system, sparse) as designated, Freezer([system.point]) as freezer:
        freezer.freeze(30)
        [file_map] = map_files(designated)
        freezer.thaw()
    assert file_map.size == 100 << 30
    assert file_map.logical.tolist() == [0, 50 << 30, (100 << 30) - 4096]
    with system.image.open("rb") as image:
        for (offset, piece), start, physical in zip(
            pieces.items(), file_map.logical.tolist(), file_map.physical.tolist(), strict=True
        ):
            image.seek(physical + offset - start)
            assert image.read(len(piece)) == piece


def test_offset_of_the_mount_is_added(system: FileSystem, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    with designate(system, place) as designated:
        [here] = Frozen(system, designated).concordance
    system.start = MIB
    try:
        with designate(system, place) as designated, Freezer([system.point]) as freezer:
            freezer.freeze(30)
            [there] = map_files(designated)
            freezer.thaw()
    finally:
        system.start = 0
    assert (there.physical - here.physical).tolist() == [MIB]


@pytest.mark.parametrize("system", ["xfs"], indirect=True)  # ext4 shares no extents
def test_reflinks_are_read_where_they_are_shared(system: FileSystem, place: Path) -> None:
    (place / "original").write_bytes(content("original", MIB))
    run("cp", "--reflink=always", place / "original", place / "copy")
    with (place / "copy").open("r+b") as file:
        file.seek(65536)
        file.write(content("changed", 4096))
    expected = {str(path): path.read_bytes() for path in place.iterdir()}
    with designate(system, place) as designated:
        frozen = Frozen(system, designated)
    assert frozen.files == expected
    shared = set(frozen.map_of(place / "original").physical.tolist()) & set(
        frozen.map_of(place / "copy").physical.tolist()
    )
    assert shared
    assert frozen.concordance.domain("data", TRACK, 1 << 16).count() < 2 * MIB // TRACK


def test_metadata_is_that_of_t0_and_can_be_given_to_another(system: FileSystem, place: Path) -> None:
    file = place / "file"
    file.write_bytes(b"content")
    os.chown(file, 12345, 54321)
    file.chmod(0o4750)
    attributes = {"user.note": b"\0binary\xff", "trusted.note": b"t", "security.note": b"s"}
    # user::rw- user:4711:r-- group::r-- mask::r-- other::---, as the kernel has it.
    nobody = 2**32 - 1
    entries = [(1, 6, nobody), (2, 4, 4711), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    # Capabilities of revision 2: cap_net_raw, permitted and effective.
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    attributes |= {"system.posix_acl_access": acl, "security.capability": capability}
    for name, value in attributes.items():
        os.setxattr(file, name, value)
    os.utime(file, ns=(1_000_000_000_000_000_001, 1_500_000_000_123_456_789))
    with designate(system, file) as designated:
        [file_map] = Frozen(system, designated).concordance
    metadata = file_map.metadata
    assert metadata.xattrs == attributes
    assert (metadata.uid, metadata.gid) == (12345, 54321)
    assert metadata.mode == os.stat(file).st_mode & 0o7777
    assert metadata.mtime_ns == 1_500_000_000_123_456_789
    assert metadata.atime_ns == 1_000_000_000_000_000_001
    assert Metadata.from_json(metadata.to_json()) == metadata

    with (place / "other").open("w+b") as other:
        other.write(b"content")
        other.flush()
        assert metadata.apply(other.fileno()) == []
        assert Metadata.of(other.fileno()) == metadata


def test_thousands_of_files_and_of_extents(system: FileSystem, place: Path) -> None:
    """More files than the usual number of descriptors, more extents than one call gives."""
    for number in range(3000):
        path = place / f"{number // 10:03}" / f"{number:04}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % number)
    with (place / "sieve").open("wb") as file:
        for number in range(9000):
            file.seek(number * 8192)
            file.write(b"%08d" % number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with designate(system, place) as designated:
            frozen = Frozen(system, designated)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(frozen.files) == 3001
    assert len(frozen.map_of(place / "sieve").logical) == 9000
    assert all(frozen.files[str(place / f"{n // 10:03}" / f"{n:04}")] == b"%d" % n for n in range(3000))
    sieve = frozen.files[str(place / "sieve")]
    assert all(sieve[n * 8192 : n * 8192 + 8] == b"%08d" % n for n in range(9000))


def test_more_files_than_may_be_open(system: FileSystem, place: Path) -> None:
    for number in range(300):
        (place / f"{number}").touch()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))\n"
        "from timezero.concordance.selection import Selection, resolve\n"
        "from timezero.concordance.mounts import Mount\n"
        "import os; place = sys.argv[1]\n"
        "mount = Mount('data', place, os.stat(place).st_dev, 'ext4', 0, 4096, False)\n"
        "resolve([Selection('data', place)], [mount])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, place], capture_output=True, text=True, timeout=60, check=False
    )
    assert "244 files are too many to hold open at once" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_the_file_systems_of_two_volumes(root: None, tmp_path: Path) -> None:
    with ExitStack() as stack:
        systems = [stack.enter_context(file_system(kind, tmp_path)) for kind in KINDS]
        for system in systems:
            (system.point / "file").write_bytes(content(system.kind, 50_000))
        mounts = [system.mount(system.kind) for system in systems]
        with resolve([Selection(s.kind, f"{s.point}/file") for s in systems], mounts) as designated:
            with Freezer([s.point for s in systems]) as freezer:
                freezer.freeze(30)
                concordance = map_files(designated)
                found = [read_physically(s.image, file) for s, file in zip(systems, concordance, strict=True)]
                freezer.thaw()
            assert found == [content(kind, 50_000) for kind in KINDS]
            for file in concordance:
                own = {int(p) // TRACK for p in file.physical}
                assert own <= set(concordance.domain(file.dataset.volume, TRACK, 1 << 16).positions().tolist())


# ---- refused ----


def test_inline_data_is_refused_by_name(root: None, tmp_path: Path) -> None:
    with file_system("ext4", tmp_path, "-O", "inline_data", size=64 * MIB) as system:
        (system.point / "inline").write_bytes(b"small")
        (system.point / "ordinary").write_bytes(bytes(100_000))
        os.sync()
        with pytest.raises(UsageError, match="inline: its data lies within its inode"):
            designate(system, system.point / "*")
        with designate(system, system.point / "*", read_through=True) as designated:
            assert [(d.path.rpartition("/")[2], d.problem is None) for d in designated] == [
                ("inline", False),
                ("ordinary", True),
            ]
            with pytest.raises(ValueError, match="read through"):
                map_files(designated)


def test_a_file_that_becomes_inline_after_selection_is_no_t0(root: None, tmp_path: Path) -> None:
    with file_system("ext4", tmp_path, "-O", "inline_data", size=64 * MIB) as system:
        (system.point / "file").write_bytes(bytes(100_000))
        os.sync()
        with designate(system, system.point / "file") as designated:
            (system.point / "new").write_bytes(b"small")
            (system.point / "new").rename(system.point / "file")
            with Freezer([system.point]) as freezer:
                freezer.freeze(30)
                with pytest.raises(TimezeroError, match=r"no T0: data:.*file, which is another.*: its data lies"):
                    map_files(designated)


def test_btrfs_is_refused_by_name(root: None, tmp_path: Path) -> None:
    with file_system("btrfs", tmp_path, size=256 * MIB) as system:
        (system.point / "file").write_bytes(bytes(100_000))
        with pytest.raises(UsageError, match="file: btrfs: what it calls physical"):
            designate(system, system.point / "file")
        with designate(system, system.point / "file", read_through=True) as designated:
            assert designated[0].problem is not None
