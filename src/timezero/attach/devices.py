"""Block devices: are they well, and does anybody use them?"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from timezero._linux import mounts_of
from timezero._linux.devices import SWAP
from timezero.attach import tools
from timezero.errors import LockedError

SECTOR = 512
_PASSING_S = 2.0  # seconds: udev looks into every new device, and goes


def size_of(device: str) -> int:
    """Bytes; 0 for none. In sysfs as well as here, devices count in sectors of 512 whatever theirs are."""
    try:
        return int((tools.SYSFS / "block" / Path(device).name / "size").read_text()) * SECTOR
    except (OSError, ValueError):
        return 0


def is_read_only(device: str) -> bool:
    try:
        return (tools.SYSFS / "block" / Path(device).name / "ro").read_text().strip() == "1"
    except OSError:
        return False


def sector_of(path: str) -> int:
    """The sector size of a disk, for a volume that is one: its partition table counts in it. 512 for all else."""
    try:
        found = os.stat(path)
        if not stat.S_ISBLK(found.st_mode):
            return SECTOR
        node = tools.SYSFS / "dev" / "block" / f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        disk = node.resolve().parent if (node / "partition").exists() else node
        sector = int((disk / "queue" / "logical_block_size").read_text())
    except (OSError, ValueError):
        return SECTOR
    return sector if sector in (512, 1024, 2048, 4096) else SECTOR


def is_readable(path: str) -> bool:
    """Can its first bytes be read, from whoever serves it, past the page cache?"""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with mmap.mmap(-1, 4096) as page:
            return os.preadv(descriptor, [page], 0) > 0
    except OSError:
        return False
    finally:
        os.close(descriptor)


def refuse_in_use(name: str, device: str) -> None:
    """Raises LockedError, which says by whom a device is used: mounts, swap, devices made of it, open files."""
    numbers = _numbers(device)
    for number in numbers:
        if places := mounts_of(number):
            what = "is swap space: swapoff" if places[0] == SWAP else f"is mounted on {places[0]}: unmount"
            raise LockedError(f"{name}: {device} {what} it first")
    for holder in sorted((tools.SYSFS / "block" / Path(device).name).glob("**/holders/*")):
        raise LockedError(f"{name}: {device}: {holder.name} is built on it: take that down first")
    if not tools.wait_for(lambda: _opener(numbers) is None, _PASSING_S) and (opener := _opener(numbers)):
        raise LockedError(f"{name}: {device} is open in {opener[1]} (process {opener[0]}): end that first")


def flush(device: str) -> bool:
    """Write out what is cached of a device. False: it could not be, and is lost."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.fsync(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _numbers(device: str) -> set[int]:
    """The device numbers of a device and of its partitions."""
    found = set()
    directory = tools.SYSFS / "block" / Path(device).name
    for entry in (directory, *(part.parent for part in directory.glob("*/partition"))):
        try:
            major, minor = (entry / "dev").read_text().split(":")
            found.add(os.makedev(int(major), int(minor)))
        except (OSError, ValueError):
            continue
    return found


def _opener(numbers: set[int]) -> tuple[int, str] | None:
    """A process that has one of the devices open."""
    for process in tools.PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            for entry in os.scandir(process / "fd"):
                found = entry.stat()
                if stat.S_ISBLK(found.st_mode) and found.st_rdev in numbers:
                    return int(process.name), (process / "comm").read_text().strip()
        except OSError:
            continue  # it ended, or closed it, meanwhile; or it is not ours to look at
    return None
