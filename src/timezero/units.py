"""Sizes, durations and instants as people write and read them."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from timezero.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_BINARY = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1024 * TIB}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,6})?)\s*([KMGTP]?)(I?B)?", re.IGNORECASE | re.ASCII)
_MICROSECONDS = {"us": 1, "ms": 1000, "s": 1_000_000, "": 1_000_000, "m": 60_000_000, "min": 60_000_000}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(us|ms|s|min|m|)", re.IGNORECASE | re.ASCII)
_FACTOR = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)x", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size like `4096`, `64K`, `1MiB`, `10G` (powers of 1024) or `10GB` (powers of 1000).

    Raises UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size: write 4096, 64K, 1MiB or 10G")
    number, letter, suffix = match[1], match[2].upper(), (match[3] or "").upper()
    factor = _DECIMAL[letter] if suffix == "B" and letter else _BINARY[letter]
    whole, _, fraction = number.partition(".")
    value, rest = divmod(int(whole + fraction) * factor, int("1" + "0" * len(fraction)))
    if rest:
        raise UsageError(f"{text!r} is not a whole number of bytes")
    if value >= 2**63:
        raise UsageError(f"{text!r} is larger than any volume")
    return value


def parse_duration_us(text: str) -> int:
    """Microseconds of a duration like `800us`, `50ms`, `2s`, `1.5s`, `2m`; a bare number counts seconds.

    Raises UsageError.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a duration: write 800us, 50ms, 2s or 1m")
    whole, _, fraction = match[1].partition(".")
    value = int(whole + fraction) * _MICROSECONDS[match[2].lower()] // int("1" + "0" * len(fraction))
    if value <= 0:
        raise UsageError(f"{text!r} is no time at all")
    if value >= 2**40:
        raise UsageError(f"{text!r} is longer than any job")
    return value


class LatencyTarget(NamedTuple):
    """Of an application's latency. ns: absolute; 0: `percent` of what is usual."""

    ns: int
    percent: int


def parse_latency_target(text: str) -> LatencyTarget:
    """`2ms`, `500us`, or `1.25x`, times what is usual, from 1x to 1000x. Raises UsageError."""
    match = _FACTOR.fullmatch(text.strip())
    if match and 1 <= float(match[1]) <= 1000:
        return LatencyTarget(0, round(100 * float(match[1])))
    if match or not _DURATION.fullmatch(text.strip()):
        raise UsageError(f"{text!r} is not a latency target: write 2ms, 500us, or 1.25x of what is usual")
    return LatencyTarget(1000 * parse_duration_us(text), 0)


def format_size(count: float) -> str:
    """`count` bytes with a binary unit and about three digits: `1.50 GiB`."""
    value, units = float(count), ["PiB", "TiB", "GiB", "MiB", "KiB", "B"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop()
    unit = units[-1]
    if unit == "B":
        return f"{value:.0f} B"
    return (
        f"{value:.2f} {unit}"
        if abs(value) < 10
        else f"{value:.1f} {unit}"
        if abs(value) < 100
        else f"{value:.0f} {unit}"
    )


def format_seconds(seconds: float) -> str:
    """A duration for people: `12 s`, `3:05`, `2:03:09`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def format_instant(ns: int) -> str:
    """Nanoseconds since the epoch as UTC with microseconds, `2026-11-23T01:02:03.456789Z`."""
    seconds, rest = divmod(ns, 10**9)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{moment}.{rest // 1000:06}Z"
