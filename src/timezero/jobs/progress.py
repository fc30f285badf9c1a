"""How far a job is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

#: Seconds over which the current rate is taken.
_WINDOW_S = 5.0


class Progress(NamedTuple):
    """A look at a running job.

    phase: "moving", "waiting" (outside of its hours) or "finishing" (making durable, committing). done,
    total: bytes of the datasets, holes included. rate: bytes a second, lately. remaining_s: a guess, None while there
    is none. sidefile_bytes: used now,
    intercepted: updates held so far, both None for sources that no one serves. yields: slower than it could be, for the
    application's sake. waits_until: when its hours begin, `HH:MM`; empty in them.
    """

    phase: str
    done: int
    total: int
    elapsed_s: float
    rate: float
    remaining_s: float | None
    sidefile_bytes: int | None = None
    intercepted: int | None = None
    yields: bool = False
    waits_until: str = ""


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Makes Progress out of byte counts and calls the callback with it."""

    def __init__(self, callback: ProgressCallback | None, total: int) -> None:
        self._callback = callback
        self._total = total
        self._started = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._last: tuple[int, int | None, int | None] = (0, None, None)
        self._pace: tuple[bool, str] = (False, "")

    def paced(self, yields: bool, waits_until: str) -> None:
        """What the next report says of the mover's pace."""
        self._pace = yields, waits_until

    def update(self, done: int, sidefile_bytes: int | None = None, intercepted: int | None = None) -> None:
        """Report that `done` bytes are moved."""
        self._last = (done, sidefile_bytes, intercepted)
        self._emit("waiting" if self._pace[1] else "moving")

    def finishing(self) -> None:
        """Report that all data is moved and is being made durable."""
        self._last = (self._total, *self._last[1:])
        self._pace = (False, "")
        self._emit("finishing")

    def _emit(self, phase: str) -> None:
        if self._callback is None:
            return
        now = time.monotonic()
        done, sidefile_bytes, intercepted = self._last
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        remaining = (self._total - done) / rate if rate > 0 else None
        self._callback(
            Progress(
                phase,
                done,
                self._total,
                now - self._started,
                rate,
                remaining if phase != "waiting" else None,
                sidefile_bytes,
                intercepted,
                *self._pace,
            )
        )
