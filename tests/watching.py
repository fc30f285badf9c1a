"""Looking at a server that runs, and waiting for what has to come true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from timezero import session

T = TypeVar("T")
TIMEOUT = 60.0  # seconds


def until(condition: Callable[[], T], what: str, seconds: float = TIMEOUT) -> T:
    """Wait until a condition holds; what it found. `what` is wrong when it never does."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def volume(server: Any, name: str = "db") -> dict[str, Any]:
    """What the status says of a volume. server: has a `control`."""
    found: dict[str, Any]
    [found] = [item for item in session.status(server.control)["volumes"] if item["name"] == name]
    return found


def sessions(server: Any) -> list[dict[str, Any]]:
    """The parts of the sessions there are."""
    found: list[dict[str, Any]] = session.status(server.control)["sessions"]
    return found
