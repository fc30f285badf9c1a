"""What a file or device stands on, down through partitions, loop devices, device-mapper, md and filesystems.

Two served volumes of which one stands on the other would overwrite each other behind the gate; a sidefile that stands
on a volume it protects would wait for itself. Network and userspace filesystems end the stack: nothing tells what is
below them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from timezero._linux.escapes import unescape

Identity = tuple[int, int]  # (st_dev, st_ino) of a file, (st_rdev, 0) of a block device: as tz/file.h has it

_SYSFS = "/sys/dev/block"
_MOUNTINFO = "/proc/self/mountinfo"


def identity_of(found: os.stat_result) -> Identity:
    if stat.S_ISBLK(found.st_mode):
        return found.st_rdev, 0
    return found.st_dev, found.st_ino


def standing_on(path: str | os.PathLike[str]) -> set[Identity]:
    """Everything that `path` stands on, itself included. Raises OSError when it cannot be looked at."""
    seen: set[Identity] = set()
    _descend(os.fspath(path), seen)
    return seen


def _descend(path: str, seen: set[Identity]) -> None:
    found = os.stat(path)
    if stat.S_ISBLK(found.st_mode):
        _descend_device(found.st_rdev, seen)
        return
    if identity_of(found) in seen:
        return
    seen.add(identity_of(found))
    for below in _filesystem_stands_on(path, found.st_dev):
        if isinstance(below, int):
            _descend_device(below, seen)
        else:
            _descend(below, seen)


def _descend_device(device: int, seen: set[Identity]) -> None:
    if (device, 0) in seen:
        return
    seen.add((device, 0))
    node = f"{_SYSFS}/{os.major(device)}:{os.minor(device)}"
    if os.path.exists(f"{node}/partition"):
        _descend_number(f"{os.path.dirname(os.path.realpath(node))}/dev", seen)
    for slave in _names(f"{node}/slaves"):
        _descend_number(f"{node}/slaves/{slave}/dev", seen)
    try:
        backing = _read(f"{node}/loop/backing_file").rstrip("\n")
        _descend(backing, seen)
    except OSError:
        pass  # no loop device, or its file was deleted


def _descend_number(file: str, seen: set[Identity]) -> None:
    try:
        major, minor = _read(file).split(":")
    except (OSError, ValueError):
        return
    _descend_device(os.makedev(int(major), int(minor)), seen)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> str:
    with open(path, errors="surrogateescape") as file:
        return file.read()


def _filesystem_stands_on(path: str, device: int) -> Iterator[int | str]:
    """The device below a file's filesystem; below an overlay, its upper directory."""
    if os.major(device) != 0:
        yield device
        return
    # btrfs and others give files an anonymous device: the mount says which one it is.
    kind, source, options = _mount_of(path)
    if kind == "overlay":
        upper = [option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")]
        yield from (directory for directory in upper if os.path.isdir(directory))
    elif source.startswith("/"):
        try:
            found = os.stat(source)
        except OSError:
            return
        if stat.S_ISBLK(found.st_mode):
            yield found.st_rdev


def _mount_of(path: str) -> tuple[str, str, list[str]]:
    """(filesystem type, source, superblock options) of the mount that holds `path`."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = _read(f"/proc/self/fdinfo/{descriptor}").splitlines()
    finally:
        os.close(descriptor)
    number = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), None)
    for line in _read(_MOUNTINFO).splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[0] == number:
            kind, source, options = [*right.split(), "", "", ""][:3]
            return kind, unescape(source), [unescape(option) for option in options.split(",")]
    return "", "", []
