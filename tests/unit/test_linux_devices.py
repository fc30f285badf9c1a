"""Who uses a device: loop devices, partitions, device stacks and mounts that are real."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from timezero import _linux
from timezero._linux import devices

MIB = 1 << 20
TIMEOUT = 60
Loop = Callable[..., Path]
Mount = Callable[..., Path]


def make_image(path: Path, size: int, kind: str = "", offset: int = 0) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    if kind == "ext4":
        blocks = (size - offset) // 1024
        options = ["-E", f"offset={offset}", path, str(blocks)]
        subprocess.run(["mkfs.ext4", "-q", "-b", "1024", *options], check=True, capture_output=True, timeout=60)
    elif kind:
        subprocess.run([f"mkfs.{kind}", path], check=True, capture_output=True, timeout=60)
    return path


def test_mounts_of_a_device_and_of_its_file(tmp_path: Path, loop: Loop, mount: Mount) -> None:
    image = make_image(tmp_path / "image", 16 * MIB, "ext4")
    other = make_image(tmp_path / "other", MIB)
    device = loop(image)
    assert _linux.mounts_of(device) == []
    point = mount(device, tmp_path / "a name with\ttab, space and \\134")
    for volume in (device, image, os.stat(device).st_rdev):
        assert _linux.mounts_of(volume) == [str(point)]
    assert _linux.mounts_of(other) == []
    assert _linux.mounts_of(loop(other)) == []


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=TIMEOUT)


@contextmanager
def partition(disk: Path, folder: Path, number: int, start: int, size: int) -> Iterator[Path]:
    """A partition in the kernel's table alone: nothing is written to the disk. Bytes.

    Its node is made here: in a container, nobody else does it.
    """
    run("addpart", disk, number, start // 512, size // 512)
    try:
        major, minor = Path(f"/sys/block/{disk.name}/{disk.name}p{number}/dev").read_text().split(":")
        node = folder / f"partition-{number}"
        os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
        yield node
    finally:
        run("delpart", disk, number)


def test_a_partition_counts_for_its_disk_and_not_for_its_neighbour(
    tmp_path: Path, loop: Loop, mount: Mount, stack: ExitStack
) -> None:
    disk = loop(make_image(tmp_path / "disk", 17 * MIB, "ext4", offset=MIB))
    first = stack.enter_context(partition(disk, tmp_path, 1, MIB, 16 * MIB))
    second = stack.enter_context(partition(disk, tmp_path, 2, 0, MIB))
    point = mount(first, tmp_path / "mounted")
    assert _linux.mounts_of(first) == [str(point)]
    assert _linux.mounts_of(disk) == [str(point)]
    assert _linux.mounts_of(second) == []


def test_a_whole_disk_that_is_mounted_counts_for_its_partition(
    tmp_path: Path, loop: Loop, mount: Mount, stack: ExitStack
) -> None:
    disk = loop(make_image(tmp_path / "disk", 16 * MIB, "ext4"))
    part = stack.enter_context(partition(disk, tmp_path, 1, MIB, MIB))
    point = mount(disk, tmp_path / "mounted")
    assert _linux.mounts_of(part) == [str(point)]


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A disk sda (8:0) with partitions 1 and 2; a dm-0 (253:0) on sda2; a btrfs on sdb (8:16) and sdc (8:32)."""
    numbers = {"sda": "8:0", "sdb": "8:16", "sdc": "8:32", "dm-0": "253:0", "sda/sda1": "8:1", "sda/sda2": "8:2"}
    root = tmp_path / "sys"
    (root / "dev" / "block").mkdir(parents=True)
    for name, number in numbers.items():
        directory = root / "devices" / name
        (directory / "holders").mkdir(parents=True)
        (directory / "dev").write_text(number + "\n")
        (root / "dev" / "block" / number).symlink_to(directory)
        if "/" in name:
            (directory / "partition").write_text(name[-1])
    (root / "devices" / "sda" / "sda2" / "holders" / "dm-0").symlink_to(root / "devices" / "dm-0")
    members = root / "fs" / "btrfs" / "some-uuid" / "devices"
    members.mkdir(parents=True)
    for name in ("sdb", "sdc"):
        (members / name).symlink_to(root / "devices" / name)
    monkeypatch.setattr(devices, "_SYSFS", root)

    def tables(mounts: str, swaps: str = "") -> None:
        (tmp_path / "mountinfo").write_text(mounts)
        (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n" + swaps)
        monkeypatch.setattr(devices, "_MOUNTS", tmp_path / "mountinfo")
        monkeypatch.setattr(devices, "_SWAPS", tmp_path / "swaps")

    return tables


def test_a_device_made_of_a_partition_counts_all_the_way_down(sysfs: Callable[..., None]) -> None:
    sysfs("30 1 253:0 / /srv rw shared:1 - ext4 /dev/mapper/data rw\n31 1 8:1 / /boot rw - ext4 /dev/sda1 rw\n")
    assert _linux.mounts_of(os.makedev(253, 0)) == ["/srv"]
    assert _linux.mounts_of(os.makedev(8, 2)) == ["/srv"]
    assert _linux.mounts_of(os.makedev(8, 1)) == ["/boot"]
    assert _linux.mounts_of(os.makedev(8, 0)) == ["/srv", "/boot"]
    assert _linux.mounts_of(os.makedev(8, 16)) == []


def test_all_devices_of_one_btrfs_are_in_use(sysfs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs("30 1 0:45 /sub /pool rw - btrfs /dev/sdb rw\n31 1 0:46 / /proc rw - proc proc rw\n")
    monkeypatch.setattr(devices, "_rdev", {"/dev/sdb": os.makedev(8, 16)}.get)
    assert _linux.mounts_of(os.makedev(8, 16)) == ["/pool"]
    assert _linux.mounts_of(os.makedev(8, 32)) == ["/pool"]
    assert _linux.mounts_of(os.makedev(8, 0)) == []


def test_swap_is_use(sysfs: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs("", "/dev/sda1 partition 1048572 0 -2\n")
    monkeypatch.setattr(devices, "_rdev", {"/dev/sda1": os.makedev(8, 1)}.get)
    assert _linux.mounts_of(os.makedev(8, 0)) == ["[swap]"]
    assert _linux.mounts_of(os.makedev(8, 2)) == []


def test_a_mounted_btrfs_is_found_by_its_source(tmp_path: Path, loop: Loop, mount: Mount) -> None:
    device = loop(make_image(tmp_path / "btrfs", 128 * MIB, "btrfs"))
    point = mount(device, tmp_path / "mounted")
    assert _linux.mounts_of(device) == [str(point)]
