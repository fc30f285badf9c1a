"""What stands in the place of timezero/_crash.py in the build for the sweep. The core's half: csrc/io/crash.c."""

from __future__ import annotations

import os
import signal

_passes = 0


def crash_point(name: str) -> None:
    """Die or stop here, when TIMEZERO_CRASH_AT says so: see tz/crash.h."""
    global _passes
    at, _, wanted = os.environ.get("TIMEZERO_CRASH_AT", "").partition(":")
    if at != name:
        return
    _passes += 1
    if _passes == int(wanted or 1):
        os.kill(os.getpid(), signal.SIGSTOP if os.environ.get("TIMEZERO_CRASH_HOW") == "stop" else signal.SIGKILL)
