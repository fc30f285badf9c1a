"""Commands that may take only so much memory: in a cgroup of their own where there is one to be had, else by rlimit."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


def _make(limit: int) -> Path | None:
    """A cgroup with this limit; None where this machine lets nobody have one."""
    for base, names in ((_V2, ("memory.max", "memory.swap.max")), (_V1, ("memory.limit_in_bytes",))):
        group = base / f"timezero-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name in names:
                with (group / name).open("r+") as file:  # elsewhere it would become a file
                    file.write("0" if "swap" in name else str(limit))
            return group
        except OSError:
            group.rmdir()
    return None


@contextmanager
def memory_limit(limit: int) -> Iterator[tuple[Callable[[], None], str]]:
    """(what a child has to call before it executes, how it is limited). limit: bytes, page cache included."""
    group = _make(limit)
    if group is None:
        yield (lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))), "rlimit"
        return
    try:
        yield (lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None), "cgroup"
    finally:
        group.rmdir()
