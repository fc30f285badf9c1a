"""What a file or device stands on: file systems, partitions, device mapper, loop devices, down to disks.

Used to refuse a job that would read what it writes. What runs through another process (a network block device, FUSE)
cannot be seen from here. Errors: none; what cannot be looked up is left out.
"""

from __future__ import annotations

import os
import stat

#: (device, inode) of a file, (device number, 0) of a block device: as timezero._native.subsystem.Volume.identity.
Identity = tuple[int, int]

_SYSFS = "/sys/dev/block"


def identity(status: os.stat_result) -> Identity:
    """What a file or block device is, whatever its name."""
    if stat.S_ISBLK(status.st_mode):
        return status.st_rdev, 0
    return status.st_dev, status.st_ino


def foundations(path: str) -> set[Identity]:
    """`path` itself, if it exists, and everything under it."""
    found: set[Identity] = set()
    paths, devices = [path], list[int]()
    while paths or devices:
        if paths:
            try:
                here = identity(os.stat(paths.pop()))
            except OSError:
                continue
            if here[1]:
                found.add(here)
            devices.append(here[0])
            continue
        device = devices.pop()
        if (device, 0) not in found:
            found.add((device, 0))
            _below(device, paths, devices)
    return found


def _below(device: int, paths: list[str], devices: list[int]) -> None:
    """Add what a block device stands on: files to `paths`, devices to `devices`."""
    directory = os.path.realpath(f"{_SYSFS}/{os.major(device)}:{os.minor(device)}")
    lower = [f"{directory}/slaves/{name}/dev" for name in _list(f"{directory}/slaves")]
    if os.path.exists(f"{directory}/partition"):
        lower.append(f"{os.path.dirname(directory)}/dev")
    for path in lower:
        major, _, minor = _read(path).partition(":")
        if major.isdigit() and minor.isdigit():
            devices.append(os.makedev(int(major), int(minor)))
    if backing := _read(f"{directory}/loop/backing_file"):
        paths.append(backing)


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return ""
