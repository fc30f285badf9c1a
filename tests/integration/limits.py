"""Commands that may take only so much memory: in a control group of their own, page cache included.

Where nobody may make one (not root, a container without a memory controller) a limit of the process's data stands in
for it, and the test warns. Where one can be made nothing else will do.
"""

from __future__ import annotations

import atexit
import itertools
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
_numbers = itertools.count()


def _put_back(control: Path) -> None:
    """Groups cannot limit memory again, as it was, unless another run has some now."""
    if not any(control.parent.glob("timezero-test-*")):
        with suppress(OSError):
            control.write_text("-memory")


def memory_controller() -> Path | None:
    """Where groups with a limit of memory can be made; None where this machine lets nobody have one.

    A root of version 2 that does not let them is told to, until the end of the process.
    """
    if os.access(_V1 / "memory.limit_in_bytes", os.W_OK):
        return _V1
    control = _V2 / "cgroup.subtree_control"
    try:
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
            atexit.register(_put_back, control)
    except OSError:  # there is no version 2, without this controller, or it is not ours
        return None
    return _V2 if os.access(_V2, os.W_OK) else None


def _limit(group: Path, limit: int) -> None:
    """Of memory; and nothing is to be swapped out instead, where that can be said."""
    limits = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
    if not (group / "memory.limit_in_bytes").exists():
        limits = {"memory.max": limit, "memory.swap.max": 0}
    for name, value in limits.items():
        if "sw" not in name or (group / name).exists():
            with (group / name).open("r+") as file:  # elsewhere it would become a file
                file.write(str(value))


@contextmanager
def memory_limit(limit: int) -> Iterator[tuple[Callable[[], None], str]]:
    """(what a child has to call before it executes, how it is limited). limit: bytes.

    The children have to be gone at the end.
    """
    controller = memory_controller()
    if controller is None:
        warnings.warn("no memory controller here: limited by rlimit, which knows no page cache", stacklevel=3)
        yield (lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))), "rlimit"
        return
    group = controller / f"timezero-test-{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    try:
        _limit(group, limit)
        yield (lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None), "cgroup"
    finally:
        group.rmdir()
