"""How many files this process may have open.

The soft limit is 1024 nearly everywhere, for the sake of programs that use select(), whose sets end there; what is done
here is done with poll() and io_uring, and has use for more: a server of 128 connections for each of eight volumes, a
backup of ten thousand files.
"""

from __future__ import annotations

import resource


def raise_limit() -> int:
    """Let this process open as many files as it may; how many that is.

    Programs that it starts afterwards inherit the limit, and none is started with fewer free numbers than it would have
    had: our own files are close-on-exec. So one that uses select() comes across a number that is too large only when it
    opens a thousand files itself. `serve` starts none; the hooks and the watchdog are the data mover's.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # fs.nr_open was lowered since the hard limit was set
        return soft
    return hard
