"""Hooks around a suspension."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from timezero.errors import DeadlineError, TimezeroError
from timezero.quiesce.hooks import Context, Hook
from timezero.quiesce.patience import Interrupted, Patience
from timezero.quiesce.signals import HeldSignals

DEADLINE_S = 10.0  # of each step, when nobody names one

_Step = Callable[[Context, Patience], None]


class Quiesced:
    """A context manager: pre steps on entry, in order; post steps on leaving, in reverse, always.

    deadline_s: seconds, of each step; body_s: of what is done between. Entering raises DeadlineError (a pre step took
    too long) or TimezeroError (one failed), after the post steps of all hooks whose pre step was begun. Leaving raises
    TimezeroError when a post step failed: then the application may not run, or was not still at T0, and both must be
    told at once.

    `times`: of each hook by its text, pre_us and post_us, in microseconds. `total_us`: all of them.
    """

    def __init__(
        self,
        hooks: Sequence[Hook],
        deadline_s: float = DEADLINE_S,
        *,
        body_s: float = 1.0,
        volumes: Sequence[str] = (),
        session: str = "",
    ) -> None:
        self._hooks = list(hooks)
        self._deadline_s = deadline_s
        self._body_s = body_s
        self._context = Context(tuple(volumes), session)
        self._begun: list[Hook] = []
        self._signals = HeldSignals(own=(Quiesced.__enter__.__code__, Quiesced.__exit__.__code__))
        self.times: dict[str, dict[str, int]] = {}

    @property
    def total_us(self) -> int:
        """Microseconds that all steps took together."""
        return sum(sum(steps.values()) for steps in self.times.values())

    def __enter__(self) -> Self:
        self._signals.hold()
        try:
            self._prepare()
            for hook in self._hooks:
                self._stop_if_asked()
                self._begun.append(hook)
                self._run(hook, "pre", hook.pre)
            self._stop_if_asked()
        except BaseException as error:
            self._leave(error)
            raise
        self._signals.let_through()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._signals.hold_again()
        self._leave(error)

    def _prepare(self) -> None:
        for hook in self._hooks:
            self._stop_if_asked()
            patience = self._patience()
            try:
                hook.prepare(patience)
            except TimeoutError:
                raise TimezeroError(f"quiesce {hook.label}: no answer within {patience.seconds:g} s") from None
            except OSError as error:
                raise TimezeroError(f"quiesce {hook.label}: {error.strerror or error}") from None
            except TimezeroError as error:
                raise _named(error, f"quiesce {hook.label}") from None

    def _patience(self, *, interruptible: bool = True) -> Patience:
        return Patience(self._deadline_s, self._signals.wake if interruptible else -1)

    def _stop_if_asked(self) -> None:
        if self._signals.pending:
            raise Interrupted

    def _run(self, hook: Hook, name: str, step: _Step) -> None:
        where = f"quiesce {hook.label}: {name}"
        patience = self._patience(interruptible=name == "pre")
        began = time.perf_counter_ns()
        later = len(self._hooks) - 1 - self._hooks.index(hook)
        held_s = (1 + 2 * later) * self._deadline_s + self._body_s
        try:
            step(replace(self._context, held_s=held_s), patience)
        except TimeoutError:
            raise self._too_late(where, name) from None
        except OSError as error:
            raise TimezeroError(f"{where}: {error.strerror or error}") from None
        except TimezeroError as error:
            raise _named(error, where) from None
        finally:
            us = (time.perf_counter_ns() - began) // 1000
            self.times.setdefault(hook.text, {})[f"{name}_us"] = us
        # A step that cannot be cut short may end late, and well: then the application was held for too long.
        if name == "pre" and patience.left() <= 0:
            raise self._too_late(where, name)

    def _too_late(self, where: str, name: str) -> TimezeroError:
        took = f"{where}: took longer than {self._deadline_s:g} s"
        if name == "pre":
            return DeadlineError(f"{took}: the application was resumed, there is no T0; see --quiesce-deadline")
        return TimezeroError(f"{took}: the application may not run yet: look at it")

    def _leave(self, error: BaseException | None) -> None:
        """Everything undone; then what was held is delivered, and what went wrong on the way is told."""
        problems = self._undo()
        told = "; ".join(str(problem) for problem in problems)
        try:
            self._signals.release()
        except KeyboardInterrupt:
            if told:
                raise TimezeroError(f"interrupted; {told}") from None
            raise
        if not told:
            return
        if isinstance(error, TimezeroError):
            error.args = (f"{error}; {told}",)
        elif error is None and isinstance(problems[0], TimezeroError):
            problems[0].args = (told,)
            raise problems[0]
        else:
            raise TimezeroError(f"interrupted; {told}" if isinstance(error, KeyboardInterrupt) else told) from error

    def _undo(self) -> list[BaseException]:
        problems: list[BaseException] = []
        while self._begun:
            hook = self._begun.pop()
            try:
                self._run(hook, "post", hook.post)
            except BaseException as error:  # nothing may keep the others from their turn
                problems.append(error)
        for hook in reversed(self._hooks):
            hook.close()
        return problems


def _named(error: TimezeroError, where: str) -> TimezeroError:
    if not isinstance(error, Interrupted):
        error.args = (f"{where}: {error}",)
    return error
