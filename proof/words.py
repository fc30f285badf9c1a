"""What a job says on stderr."""

from __future__ import annotations

FORESEEN = ("timezero: estimate: ", "timezero: warning: ")


def after_the_estimate(err: str) -> str:
    """What is told of how a job went: all but what was foreseen before T0, which it begins with."""
    lines = err.splitlines(keepends=True)
    for foreseen in FORESEEN:
        if lines and lines[0].startswith(foreseen):
            del lines[0]
    return "".join(lines)
