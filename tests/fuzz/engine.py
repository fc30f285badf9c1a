"""A small coverage-guided fuzzer, for where atheris is not to be had: mutate, run, keep what reaches new lines.

Coverage comes from sys.settrace, over the package alone. What a mutation is worth most for here, JSON, it knows: values
are replaced by others that are legal JSON and wrong.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from tests.fuzz.base import INPUT_MAX

_VALUE = re.compile(rb'"(?:[^"\\\n]|\\.)*"(?!\s*:)|-?\d+|true|false|null')
_VALUES = (
    b"-1", b"0", b"1", b"2147483648", b"4294967295", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"72057594037927936", b"1e999", b"-1e999", b"0.5", b"NaN", b"null", b"true", b"false",
    b"[]",
    b"{}", b"[{}]", b"[null]", b'{"a": 1}', b'""', b'"x"', b'".."', b'"/"', b'"../../x"', b'"data:/../x"',
    b'"data:/a//b"',
    b'"a/b"', b'"\\u0000"', b'"\\ud800"', b'"\\udcff"', b'"\\n"', b'"' + b"A" * 5000 + b'"', b"9" * 5000, b"[" * 3000,
)  # fmt: skip
_BYTES = (0, 1, 10, 34, 47, 46, 127, 128, 255)


def mutate(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    """Something like `data`; now and then crossed with one of the others."""
    for _ in range(1 << numbers.randrange(4)):
        data = numbers.choice(_MUTATIONS)(data, numbers, others)
    return data[:INPUT_MAX]


def _json_value(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    found = list(_VALUE.finditer(data))
    if not found:
        return _set_byte(data, numbers, others)
    place = numbers.choice(found)
    return data[: place.start()] + numbers.choice(_VALUES) + data[place.end() :]


def _set_byte(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    if not data:
        return bytes([numbers.randrange(256)])
    at, changed = numbers.randrange(len(data)), bytearray(data)
    changed[at] = numbers.choice(
        (numbers.choice(_BYTES), numbers.randrange(256), changed[at] ^ 1 << numbers.randrange(8))
    )
    return bytes(changed)


def _insert(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    at = numbers.randrange(len(data) + 1)
    return data[:at] + numbers.randbytes(1 + numbers.randrange(8)) + data[at:]


def _drop(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    at = numbers.randrange(len(data) + 1)
    return data[:at] + data[at + 1 + numbers.randrange(16) :]


def _cut(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    return data[: numbers.randrange(len(data) + 1)]


def _repeat(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    start = numbers.randrange(len(data) + 1)
    piece = data[start : start + 1 + numbers.randrange(200)]
    return data[:start] + piece * (1 + numbers.randrange(3)) + data[start:]


def _cross(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    other = numbers.choice(others)
    return data[: numbers.randrange(len(data) + 1)] + other[numbers.randrange(len(other) + 1) :]


def _cross_lines(data: bytes, numbers: random.Random, others: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    lines[numbers.randrange(len(lines))] = numbers.choice(numbers.choice(others).split(b"\n"))
    return b"\n".join(lines)


_MUTATIONS: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...] = (
    _json_value, _json_value, _json_value, _set_byte, _set_byte, _insert, _drop, _cut, _repeat, _cross, _cross_lines,
)  # fmt: skip


class Coverage:
    """Lines of the package that were ever reached."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def run(self, call: Callable[[bytes], None], data: bytes) -> bool:
        """Call it; were lines reached that never were before?"""
        before = len(self.seen)
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        try:
            call(data)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
        return len(self.seen) > before

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if "/timezero/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


class Finding(Exception):
    """An input that breaks its target."""

    def __init__(self, data: bytes) -> None:
        super().__init__(repr(data[:200]))
        self.data = data


def fuzz(
    call: Callable[[bytes], None],
    corpus: Iterable[bytes],
    *,
    seed: int,
    seconds: float = 1e9,
    count: int = 10**12,
    most_seconds: float = 20.0,
) -> tuple[int, list[bytes]]:
    """Run mutations of the corpus for so long, or so many; how many, and those that are worth keeping.

    most_seconds: what one input may take. Raises Finding.
    """
    numbers, coverage, pool, new = random.Random(seed), Coverage(), list(corpus), []
    until, done = time.monotonic() + seconds, 0
    for data in pool:
        _run(coverage, call, data, most_seconds)
    while done < count and time.monotonic() < until:
        recent = pool[-20:] if numbers.randrange(3) == 0 else pool
        data = mutate(numbers.choice(recent), numbers, pool)
        done += 1
        if _run(coverage, call, data, most_seconds):
            pool.append(data)
            new.append(data)
    return done, new


def _run(coverage: Coverage, call: Callable[[bytes], None], data: bytes, most_seconds: float) -> bool:
    began = time.monotonic()
    try:
        fresh = coverage.run(call, data)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Finding(data) from error
    if time.monotonic() - began > most_seconds:
        raise Finding(data) from TimeoutError(f"more than {most_seconds} s")
    return fresh
