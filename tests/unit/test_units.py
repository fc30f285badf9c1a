"""Sizes and durations, as people write them."""

from __future__ import annotations

import pytest

from timezero.errors import UsageError
from timezero.units import (
    LatencyTarget,
    format_instant,
    format_seconds,
    format_size,
    parse_duration_us,
    parse_latency_target,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65536),
        ("64k", 65536),
        ("64KiB", 65536),
        ("64KB", 64000),
        ("1MiB", 1 << 20),
        ("1.5M", 3 << 19),
        ("10G", 10 << 30),
        ("2TB", 2 * 10**12),
        (" 7 ", 7),
        ("512B", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "1X", "1.3", "0x10", "1e3", "64KK", "64 K i", "٤", "9999999999P", "1" * 40]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"size|bytes|volume"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("800us", 800), ("50ms", 50_000), ("2s", 2_000_000), ("1.5s", 1_500_000), ("3", 3_000_000), ("2m", 120_000_000)],
)
def test_durations(text: str, microseconds: int) -> None:
    assert parse_duration_us(text) == microseconds


@pytest.mark.parametrize("text", ["", "s", "0", "0ms", "-1s", "1h", "1e9s", "999999999999m"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration_us(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("2ms", LatencyTarget(2_000_000, 0)),
        ("500us", LatencyTarget(500_000, 0)),
        ("1.5ms", LatencyTarget(1_500_000, 0)),
        ("3", LatencyTarget(3_000_000_000, 0)),
        ("1x", LatencyTarget(0, 100)),
        ("1.25x", LatencyTarget(0, 125)),
        (" 1.256X ", LatencyTarget(0, 126)),
        ("1000x", LatencyTarget(0, 100_000)),
    ],
)
def test_latency_targets(text: str, target: LatencyTarget) -> None:
    assert parse_latency_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "x", "0.99x", "0x", "1000.1x", "1001x", "-2x", "1.25 x", "2 x 3", "fast", "٢x", "1,5x"]
)
def test_what_is_no_latency_target_is_told_in_a_line(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_latency_target(text)
    assert str(error.value) == f"{text!r} is not a latency target: write 2ms, 500us, or 1.25x of what is usual"


@pytest.mark.parametrize(
    ("text", "line"), [("0ms", "'0ms' is no time at all"), ("999999999999m", "'999999999999m' is longer than any job")]
)
def test_a_latency_target_is_a_time(text: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_latency_target(text)
    assert str(error.value) == line


def test_formats() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 10 << 20, 500 << 30, 3 << 40, 5 << 50, 5 << 60)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "10.0 MiB",
        "500 GiB",
        "3.00 TiB",
        "5.00 PiB",
        "5120 PiB",
    ]
    assert [format_seconds(s) for s in (-1, 3.4, 185, 7389)] == ["0 s", "3 s", "3:05", "2:03:09"]
    assert format_instant(1_000_000_000_123_456_789) == "2001-09-09T01:46:40.123456Z"
