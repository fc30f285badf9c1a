"""What a job says on stderr."""

from __future__ import annotations

_FORESEEN = ("timezero: estimate: ", "timezero: warning: ")


def after_the_estimate(err: str) -> str:
    """What is told of how a job went: all lines but those on what was foreseen before T0."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith(_FORESEEN))
