"""Threads that serve a connection each, and a server that outlives the failure of any of them.

Not threading.Thread: its start waits until the new thread has said that it runs, and one that runs out of memory before
it can say so keeps whoever started it for ever, who here is the one that accepts.

Errors: none; a thread that cannot be had is answered with False. Threads: any.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds for a thread that was started to begin: after that it has died before it did anything.
_BEGIN_S = 5.0


class Crew(Generic[T]):
    """serve(item): what a thread does. drop(item): what is done with the item of a thread that never began."""

    def __init__(self, serve: Callable[[T], None], drop: Callable[[T], None]) -> None:
        self._serve = serve
        self._drop = drop
        self._changed = threading.Condition()
        self._next = 0
        self._members: dict[int, tuple[T, float]] = {}  # item, since when; the oldest first
        self._begun: set[int] = set()
        self._closed = False

    def start(self, item: T) -> bool:
        """Serve an item in a thread of its own. False: it is the caller's still."""
        self._drop_stillborn()
        number = -1
        try:
            with self._changed:
                if self._closed:
                    return False
                number, self._next = self._next, self._next + 1
                self._members[number] = item, time.monotonic()
            _thread.start_new_thread(self._run, (number, item))
        except (RuntimeError, MemoryError):
            with self._changed:
                self._members.pop(number, None)
            return False
        return True

    def __len__(self) -> int:
        self._drop_stillborn()
        with self._changed:
            return len(self._members)

    def oldest(self) -> tuple[T, float] | None:
        """The item that is served for the longest time, and since when (monotonic seconds)."""
        self._drop_stillborn()
        with self._changed:
            return next(iter(self._members.values()), None)

    def end(self, act: Callable[[T], None]) -> None:
        """Start nothing any more, and do something to all items that are being served, so that they end."""
        with self._changed:
            self._closed = True
            for item, _ in self._members.values():
                act(item)

    def wait(self, timeout: float) -> bool:
        """Until nobody is left, `timeout` seconds at most."""
        end = time.monotonic() + timeout
        while len(self) and (left := end - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait_for(self._is_empty, min(left, _BEGIN_S))  # one that was never born tells nobody
        return len(self) == 0

    def leave(self, last: Callable[[], None]) -> None:
        """To be called by `serve`, last: what may not happen while `end` acts."""
        with self._changed:
            last()

    def _run(self, number: int, item: T) -> None:
        with self._changed:
            if number not in self._members:  # it took so long that it was given up, and its item dropped
                return
            self._begun.add(number)
        try:
            self._serve(item)
        finally:
            with self._changed:
                self._members.pop(number, None)
                self._begun.discard(number)
                self._changed.notify_all()

    def _is_empty(self) -> bool:
        return not self._members

    def _drop_stillborn(self) -> None:
        """Without the lock: what `drop` does may take a while."""
        dropped = []
        with self._changed:
            late = time.monotonic() - _BEGIN_S
            for number, (item, since) in list(self._members.items()):
                if since > late:
                    break
                if number not in self._begun:
                    del self._members[number]
                    dropped.append(item)
        for item in dropped:
            self._drop(item)
