"""What the machine has left for a session: memory, room in the sidefile directory, descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def memory_available(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes that can be taken without anything being swapped out or killed, in the kernel's own estimate.

    The least of the machine's MemAvailable and what the limits of this process's control groups (version 2) leave;
    their page cache counts as free. What cannot be read limits nothing.
    """
    available = _fields(proc / "meminfo").get("MemAvailable:", 1 << 50) * 1024
    for group in _groups(proc, cgroups):
        limit = _number(group / "memory.max")
        if limit is not None:
            stat = _fields(group / "memory.stat")
            cache = stat.get("active_file", 0) + stat.get("inactive_file", 0)
            available = min(available, limit - (_number(group / "memory.current") or 0) + cache)
    return max(available, 0)


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


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The control group of this process, and those above it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            group = cgroups / line.removeprefix("0::/")
            while group != cgroups and group.is_relative_to(cgroups):
                yield group
                group = group.parent
            yield cgroups  # of a container: its root has limits, too


def _fields(path: Path) -> dict[str, int]:
    """{first word: the number that follows} of the lines of a file; of none when it cannot be read."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) >= 2 and line[1].isdecimal()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
