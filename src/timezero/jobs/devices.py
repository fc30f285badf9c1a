"""Block devices and their other users."""

from __future__ import annotations

import errno
import os

from timezero import _linux


def open_exclusive(path: str, flags: int) -> int | None:
    """Open a block device that nobody else claims (mount, swap, RAID, device mapper); None when somebody does."""
    try:
        return os.open(path, flags | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return None


def user_of(device: int) -> str:
    """Who uses a claimed device, in words."""
    if places := _linux.mounts_of(device):
        return f"it is mounted on {places[0]}" if places[0].startswith("/") else "it is swap space"
    try:
        holders = sorted(os.listdir(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/holders"))
    except OSError:
        holders = []
    return f"{holders[0]} is built on it" if holders else "it is in use by a program that claims it"


def mounted_read_only(device: int) -> bool:
    """Is a device mounted, and everywhere read-only? Only what this mount namespace shows."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        rows = [line.split() for line in table]
    # The last field is the file system's own options: a read-only bind mount of it may be written elsewhere.
    options = [row[-1].split(",") for row in rows if row[2] == number]
    return bool(options) and all("ro" in own for own in options)


def written_sectors(device: int) -> tuple[int, ...] | None:
    """Sectors written and discarded so far, by the kernel's own count; None when it does not tell."""
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as file:
            fields = [int(field) for field in file.read().split()]
    except (OSError, ValueError):
        return None
    return tuple(fields[6:7] + fields[13:14])
