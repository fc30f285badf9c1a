"""What the Python fuzz targets have in common.

A target takes any bytes at all and returns; what must not be is an exception that gets out of it. What may be is
written in each: the errors that the documentation names, nothing left open, nothing written where it does not belong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

#: Bytes: longer inputs than this are cut by the engine.
INPUT_MAX = 16 << 10


@dataclass(frozen=True)
class Target:
    """A reader of what others wrote. seeds: first inputs, by name."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Mapping[str, bytes]]


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Whatever happens inside, it closes the descriptors that it opens."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    left = {name: os.readlink(f"/proc/self/fd/{name}") for name in _open() - before}
    assert not left, f"left open: {left}"


def _open() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


class Input:
    """Bytes taken piece by piece; past the end everything is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def byte(self) -> int:
        """The next byte."""
        value, self._data = (self._data[0] if self._data else 0), self._data[1:]
        return value

    def rest(self) -> bytes:
        """All that is left."""
        data, self._data = self._data, b""
        return data
