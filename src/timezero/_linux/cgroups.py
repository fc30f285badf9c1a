"""What the control groups of this process leave it of memory: version 1, version 2, and both at once (hybrid)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from timezero._linux.escapes import unescape

_USUAL = "/sys/fs/cgroup"


class _Files(NamedTuple):
    """Where a group of one version says what it may take, what it has, and what of that is page cache (cgroups(7))."""

    limit: str
    usage: str
    cache: tuple[str, ...]  # what can be had back, of memory.stat; with all the groups below, as limit and usage
    swap: tuple[str, str]  # as limit and usage, of swap; of version 1: of memory and swap together


_V1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
    ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
)
_V2 = _Files(
    "memory.max",
    "memory.current",
    ("active_file", "inactive_file", "slab_reclaimable"),
    ("memory.swap.max", "memory.swap.current"),
)


def memory_left(proc: str, usual: str = _USUAL, swap: int = 0) -> int | None:
    """The least of what the limits of this process's groups, and of those above them, leave; None: no limit is known.

    In bytes, negative when over a limit; page cache counts as free, and so do `swap` bytes of the machine's as far as
    groups may have them. usual: where groups are, if the mount table does not say. What cannot be read limits nothing.
    """
    left = [_left(group, files, swap) for files, group in _groups(proc, usual)]
    return min((bytes_ for bytes_ in left if bytes_ is not None), default=None)


def _left(group: str, files: _Files, swap: int) -> int | None:
    limit = _number(f"{group}/{files.limit}")
    if limit is None:
        return None
    stat = fields(f"{group}/memory.stat")
    cache = sum(stat.get(name, 0) for name in files.cache)
    left = limit - (_number(f"{group}/{files.usage}") or 0) + cache
    most = _number(f"{group}/{files.swap[0]}")
    if most is None:
        return left + swap
    most -= _number(f"{group}/{files.swap[1]}") or 0
    # Version 1 limits memory and swap together, so page cache that is had back leaves room there, too.
    return min(left + swap, most + cache) if files is _V1 and swap else left + min(swap, max(most, 0))


def _groups(proc: str, usual: str) -> Iterator[tuple[_Files, str]]:
    """The groups that limit this process's memory, with the files of their version."""
    for line in _lines(f"{proc}/self/cgroup"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            files, (root, point) = _V2, _mount(proc, path, "cgroup2") or ("/", usual)
        elif "memory" in controllers.split(","):
            files, (root, point) = _V1, _mount(proc, path, "cgroup", "memory") or ("/", f"{usual}/memory")
        else:
            continue
        for group in _upwards(path, root, point):
            yield files, group


def _upwards(path: str, root: str, point: str) -> Iterator[str]:
    """A group and those above it, as far up as what is mounted shows them: `root` of the hierarchy at `point`.

    A container may be told a path that is not in what it sees mounted: then its own group is the root of that.
    """
    inside = path.removeprefix(root).strip("/") if _is_inside(path, root) else ""
    while inside:
        yield f"{point}/{inside}"
        inside = inside.rpartition("/")[0]
    yield point


def _is_inside(path: str, root: str) -> bool:
    return ".." not in path.split("/") and f"{path}/".startswith(root.rstrip("/") + "/")


def _mount(proc: str, path: str, kind: str, controller: str = "") -> tuple[str, str] | None:
    """(what of a hierarchy is mounted, where), from the mount table, see proc_pid_mountinfo(5).

    The first that shows the group at `path`, else the first: there may be others (the host's, in a container).
    """
    found = list(_mounts(proc, kind, controller))
    return next((mount for mount in found if _is_inside(path, mount[0])), found[0] if found else None)


def _mounts(proc: str, kind: str, controller: str) -> Iterator[tuple[str, str]]:
    for line in _lines(f"{proc}/self/mountinfo"):
        left, _, right = line.partition(" - ")
        of_kind, _, options = [*right.split(" ", 2), "", "", ""][:3]
        if of_kind == kind and (not controller or controller in options.split(",")):
            root, point = left.split(" ")[3:5]
            yield unescape(root), unescape(point)


def fields(path: str) -> dict[str, int]:
    """{first word: the number that follows} of the lines of a file; of none when it cannot be read."""
    words = [line.split() for line in _lines(path)]
    return {line[0]: int(line[1]) for line in words if len(line) >= 2 and line[1].isdecimal()}


def _number(path: str) -> int | None:
    """That a file holds; None: it says "max", or cannot be read."""
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _lines(path: str) -> list[str]:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []
