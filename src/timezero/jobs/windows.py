"""The hours in which data is copied: windows of the day, in local time.

Pure but for the clock that is given. A window may pass midnight; several are one or the other. What is looked at is
the wall clock, several times a second, so a change to summer time moves the hours with it: an hour that does not exist
is not waited for, one that comes twice counts twice.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from timezero.errors import UsageError

DAY_S = 24 * 60 * 60
_WINDOW = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", re.ASCII)


class Window(NamedTuple):
    """From `begin` to just before `end`, minutes after midnight; end below begin: on the next day."""

    begin: int
    end: int

    def holds(self, second: int) -> bool:
        """Does it hold this second of the day?"""
        begin, end = self.begin * 60, self.end * 60
        return begin <= second < end if begin < end else second >= begin or second < end

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.begin, self.end))


def parse_window(text: str) -> Window:
    """`01:00-05:00`, `22:30-04:00`; 24:00 is an end. Raises UsageError."""
    match = _WINDOW.fullmatch(text.strip())
    if match:
        hours, minutes = [int(match[1]), int(match[3])], [int(match[2]), int(match[4])]
        begin, end = (hour * 60 + minute for hour, minute in zip(hours, minutes, strict=True))
        if max(minutes) < 60 and begin < 24 * 60 and end <= 24 * 60 and begin != end:
            return Window(begin, end)
    raise UsageError(f"{text!r} is not a window: write 01:00-05:00, or 22:00-04:00 over midnight")


def parse_windows(texts: Sequence[str]) -> tuple[Window, ...]:
    """Each text may name several, with commas between. Raises UsageError."""
    return tuple(parse_window(part) for text in texts for part in text.split(","))


def _local_second() -> int:
    now = time.localtime()
    return now.tm_hour * 3600 + now.tm_min * 60 + min(now.tm_sec, 59)


class Hours(NamedTuple):
    """When data is copied, as seen from an instant on: stretches of the 24 hours that follow, and so every day.

    stretches: (seconds until it begins, seconds that it lasts), at least one, in order; none overlaps another.
    """

    stretches: tuple[tuple[float, float], ...] = ((0.0, DAY_S),)

    @property
    def waits_s(self) -> float:
        """Seconds until they begin; 0 in them."""
        return self.stretches[0][0]

    def passed(self, copied_s: float) -> float:
        """Seconds that have passed once it has copied for so many."""
        if copied_s <= 0:
            return self.waits_s
        a_day = sum(length for _, length in self.stretches)
        days = math.ceil(copied_s / a_day) - 1
        left = copied_s - days * a_day
        for begin, length in self.stretches:
            if left <= length:
                return days * DAY_S + begin + left
            left -= length
        return days * DAY_S + begin + length  # rounding


#: Without a window.
ALWAYS = Hours()


class Schedule:
    """Windows and a clock. Without windows it is always open. clock: the second of the local day."""

    def __init__(self, windows: Sequence[Window], clock: Callable[[], int] = _local_second) -> None:
        self._windows = tuple(windows)
        self._clock = clock

    def is_open(self) -> bool:
        """May data be copied now?"""
        second = self._clock()
        return not self._windows or any(window.holds(second) for window in self._windows)

    def opens(self) -> str:
        """When it opens next, `HH:MM`; empty when it is open."""
        if self.is_open():
            return ""
        second = self._clock()
        minute = min((window.begin for window in self._windows), key=lambda begin: (begin * 60 - second) % DAY_S)
        return f"{minute // 60:02}:{minute % 60:02}"

    def hours(self) -> Hours:
        """When it is open, from now on. One day stands for all: the hour of a change of time is not seen."""
        if not self._windows:
            return Hours()
        second = self._clock()
        found: list[tuple[int, int]] = []  # from, to
        for window in self._windows:
            begin = (window.begin * 60 - second) % DAY_S
            end = begin + ((window.end - window.begin) * 60 % DAY_S or DAY_S)
            found.append((begin, min(end, DAY_S)))
            if end > DAY_S:  # it has begun already
                found.append((0, end - DAY_S))
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(found):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        return Hours(tuple((float(begin), float(end - begin)) for begin, end in merged))
