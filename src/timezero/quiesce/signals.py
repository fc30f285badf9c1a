"""Signals that end a job are held while hooks run, so that none can come between a pre step and its post step.

An exception out of a signal handler may strike between any two instructions, also just before the `try` that was to
undo something. So while hooks run nothing is raised: a signal is remembered, wakes whoever waits, and is delivered
when everything is undone. Between the hooks, in the body of the `with`, signals do what they did before; only where the
default is death (SIGTERM in a program that did not set a handler) they interrupt first, and kill when all is undone.

    hold -> pre steps -> let_through -> body -> hold_again -> post steps -> release

Only the main thread can have handlers; elsewhere nothing is held, and no signal raises anything there either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HeldSignals:
    """Use once. own: code that runs between the body and the holding; a signal that strikes there is held as well."""

    def __init__(self, own: tuple[CodeType, ...] = ()) -> None:
        self._own = (*own, HeldSignals.hold_again.__code__, HeldSignals.let_through.__code__)
        self._before: dict[int, Any] = {}
        self._pending: list[int] = []
        self._passing = False
        self._pipe: tuple[int, int] | None = None

    @property
    def wake(self) -> int:
        """Readable once a signal is held; -1 where none can be."""
        return self._pipe[0] if self._pipe else -1

    @property
    def pending(self) -> bool:
        """Is a signal held?"""
        return bool(self._pending)

    def hold(self) -> None:
        """From now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in _ENDING:
                before = signal.getsignal(number)
                # Ignored (nohup) stays ignored; None was set by somebody who is not Python.
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
            # Nothing is raised from here on: a pipe that was made is known.
            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._pending:
                self._wake()
        except BaseException:
            self._restore()
            raise

    def let_through(self) -> None:
        """The body begins."""
        self._passing = True

    def hold_again(self) -> None:
        """The body has ended."""
        self._passing = False

    def release(self) -> None:
        """All is undone: deliver what was held. Raises whatever the handlers raise."""
        try:
            self._restore()
        finally:
            # What kills goes last.
            for number in sorted(set(self._pending), key=lambda n: signal.getsignal(n) == signal.SIG_DFL):
                signal.raise_signal(number)

    def _restore(self) -> None:
        pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)
        # A handler that is back may raise at once, and the others have to come back all the same.
        left, self._before = [*self._before.items()], {}
        raised: BaseException | None = None
        while left:
            try:
                while left:
                    signal.signal(*left[-1])
                    left.pop()
            except BaseException as error:
                raised = error
        if raised:
            raise raised

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._passing and (frame is None or frame.f_code not in self._own):
            before: Callable[[int, FrameType | None], Any] | signal.Handlers = self._before[number]
            if callable(before):
                before(number, frame)
                return
            self._pending.append(number)
            raise KeyboardInterrupt
        self._pending.append(number)
        self._wake()

    def _wake(self) -> None:
        if self._pipe:
            # Full of those that came before, it wakes all the same.
            with contextlib.suppress(BlockingIOError):
                os.write(self._pipe[1], b"\0")
