"""How fast a job copies where it may: what an estimate learns from it.

The hours in which it rests are not its slowness, and a rate that was asked for is not what could have been had. What it
does for the application's sake is: the next copy will do so again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_LEAST_S = 1.0  # what took less says little
#: Of a rate: a copy that is that near to it was held back by it, not only on the whole but for most of the time.
_AT_THE_RATE = 0.75


class Pace:
    """To be told again and again how far the copy has come. clock: seconds."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        """rate: bytes a second that the user allows, 0 for no limit."""
        self._rate = rate
        self._clock = clock
        self._last: tuple[float, int] | None = None  # while it copies
        self._seconds = 0.0
        self._bytes = 0

    def look(self, done: int, *, resting: bool) -> None:
        """done: bytes, all in all. resting: from here on, until the next look."""
        now = self._clock()
        if self._last:
            self._seconds += now - self._last[0]
            self._bytes += done - self._last[1]
        self._last = None if resting else (now, done)

    def bytes_s(self) -> int | None:
        """Bytes a second of the time in which it copied; None when that says nothing."""
        if self._seconds < _LEAST_S:
            return None
        found = round(self._bytes / self._seconds)
        return None if found < 1 or (self._rate and found >= _AT_THE_RATE * self._rate) else found
