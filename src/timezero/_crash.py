"""Crash points: named steps of a job, for the sweep that kills a process at each of them.

Here they are nothing. The build for the sweep has another file in this one's place (proof/crash/points.py), as the core
has them only when it is compiled for it (tz/crash.h).
"""

from __future__ import annotations


def crash_point(name: str) -> None:
    """Nothing."""
