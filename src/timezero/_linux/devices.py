"""Who uses a block device: the mount table, swap, and the stack of partitions and holders that sysfs shows.

Only what this mount namespace shows; an exclusive open (O_EXCL) of the device is the kernel's own check, and goes with
it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from timezero._linux.escapes import unescape

_SYSFS = Path("/sys")
_MOUNTS = Path("/proc/self/mountinfo")
_SWAPS = Path("/proc/swaps")

SWAP = "[swap]"


def mounts_of(volume: str | os.PathLike[str] | int) -> list[str]:
    """Where a volume is mounted: mount points, and "[swap]" for swap space. Empty: nobody uses it.

    `volume`: the path of a block device or file, or a device number (st_rdev). A device is in use when it, a partition
    of it or a device made of it (device mapper, md) is; so is a partition whose whole disk is, and a file that is
    attached to a loop device in use.
    """
    devices = _stack(_devices_of(volume))
    found = [mount.point for mount in _mounts() if _stands_on(mount, devices)]
    return found + [SWAP] * any(_rdev(path) in devices for path in _swaps())


def _devices_of(volume: str | os.PathLike[str] | int) -> set[int]:
    if isinstance(volume, int):
        return {volume}
    status = os.stat(volume)
    return {status.st_rdev} if stat.S_ISBLK(status.st_mode) else set(_loops_on(status))


def _loops_on(file: os.stat_result) -> Iterator[int]:
    """The loop devices that a file is attached to."""
    for backing in _SYSFS.glob("block/loop*/loop/backing_file"):
        try:
            path = backing.read_text().rstrip("\n")
            if os.path.samestat(os.stat(path), file):
                yield _number(backing.parent.parent / "dev")
        except OSError:
            continue  # detached meanwhile, or the file has no name any more


def _stack(devices: Iterable[int]) -> set[int]:
    """The devices, the disks that they are partitions of, and everything that is made of them."""
    seen: set[int] = set()
    todo = [*devices]
    # A disk above a partition counts itself, but not with its other partitions.
    for device in devices:
        disk = _directory(device) / ".." / "dev"
        if (_directory(device) / "partition").exists() and disk.exists():
            seen.add(_number(disk))
    while todo:
        device = todo.pop()
        if device not in seen:
            seen.add(device)
            todo += _made_of(_directory(device))
    return seen


def _made_of(directory: Path) -> Iterator[int]:
    for entry in [*directory.glob("*/partition"), *directory.glob("holders/*/dev")]:
        yield _number(entry.parent / "dev")
    # All devices of one btrfs are in use when one is; its mounts show one of them only.
    for members in _SYSFS.glob(f"fs/btrfs/*/devices/{directory.resolve().name}"):
        for member in members.parent.iterdir():
            yield _number(member / "dev")


def _directory(device: int) -> Path:
    return (_SYSFS / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}").resolve()


def _number(path: Path) -> int:
    major, minor = path.read_text().split(":")
    return os.makedev(int(major), int(minor))


class _Mount(NamedTuple):
    device: int
    point: str
    source: str


def _mounts() -> Iterator[_Mount]:
    """/proc/self/mountinfo, see proc_pid_mountinfo(5)."""
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        major, minor = fields.split()[2].split(":")
        yield _Mount(os.makedev(int(major), int(minor)), unescape(fields.split()[4]), unescape(rest.split(" ")[1]))


def _swaps() -> Iterator[str]:
    for line in _SWAPS.read_text(errors="surrogateescape").splitlines()[1:]:
        yield unescape(line.split()[0])


def _stands_on(mount: _Mount, devices: set[int]) -> bool:
    # btrfs and others mount under an anonymous device (major 0): the source tells.
    return mount.device in devices or (os.major(mount.device) == 0 and _rdev(mount.source) in devices)


def _rdev(path: str) -> int | None:
    """The device number of a path that names a block device."""
    if not path.startswith("/"):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None
