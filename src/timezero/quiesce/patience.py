"""How long a step may take, and what cuts it short."""

from __future__ import annotations

import math
import select
import time

from timezero.errors import TimezeroError

_POLL_MAX_MS = 3_600_000


class Interrupted(TimezeroError):
    """A signal asked the job to end while a step waited; the signal is delivered once everything is undone."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted")


class Patience:
    """The time of one step. seconds: from now. wake: a descriptor that becomes readable when the job is to end."""

    def __init__(self, seconds: float, wake: int = -1) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._wake = wake

    def left(self) -> float:
        """Seconds, 0.0 at the least."""
        return max(0.0, self._end - time.monotonic())

    def part(self, fraction: float) -> Patience:
        """A share of what is left."""
        return Patience(self.left() * fraction, self._wake)

    def wait(self, *wanted: tuple[int, int]) -> dict[int, int]:
        """Wait for one of (descriptor, poll events); what happened. Raises TimeoutError, Interrupted."""
        poll = select.poll()
        for descriptor, events in wanted:
            poll.register(descriptor, events)
        if self._wake >= 0:
            poll.register(self._wake, select.POLLIN)
        found = dict(poll.poll(min(math.ceil(self.left() * 1000), _POLL_MAX_MS)))
        if found.pop(self._wake, 0):
            raise Interrupted
        if not found and self.left() <= 0:
            raise TimeoutError
        return found

    def pause(self, seconds: float) -> None:
        """Sleep. Raises TimeoutError, Interrupted."""
        end = min(seconds, self.left())
        try:
            Patience(end, self._wake).wait()
        except TimeoutError:
            if self.left() <= 0:
                raise
