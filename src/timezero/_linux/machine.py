"""What the machine has left for us: memory, room in the sidefile directory, descriptors."""

from __future__ import annotations

import os
import resource

from timezero._linux import cgroups


def memory_available(proc: str = "/proc", groups: str = "/sys/fs/cgroup", *, swap: bool = False) -> int:
    """Bytes that can be taken without anything being swapped out or killed, in the kernel's own estimate.

    The least of the machine's MemAvailable and what the limits of this process's control groups leave; their page cache
    counts as free. What cannot be read limits nothing. groups: where control groups usually are. swap: what may be
    swapped out counts as well.
    """
    found = cgroups.fields(f"{proc}/meminfo")
    room = found.get("SwapFree:", 0) * 1024 if swap else 0
    available = found.get("MemAvailable:", 1 << 50) * 1024 + room
    left = cgroups.memory_left(proc, groups, room)
    return max(available if left is None else min(available, left), 0)


def disk_available(directory: str) -> int:
    """Bytes that a file in `directory` may still take. Raises OSError."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def descriptors_available() -> int:
    """Files that this process may still open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY:
        return 1 << 31
    try:
        return most - len(os.listdir("/proc/self/fd"))
    except OSError:  # it takes one to look
        return 0
