"""Freezing and thawing file systems through the watchdog process (csrc/watchdog/freezer.c).

The watchdog thaws when it is told to, when its deadline passes, when it gets a signal that ends programs, and when this
process lets go of it or is gone, however that came about. Should the watchdog itself be killed, this process thaws.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from timezero import _linux
from timezero.errors import DeadlineError, TimezeroError, UsageError

POINTS_MAX = 64

_PROGRAM = Path(_linux.__file__).parent / "freezer"
_SPARE_DESCRIPTOR = 200  # above all that the program expects, so that none is overwritten before it is handed on
_SOCKET, _PARENT, _FIRST_POINT = 3, 4, 5

_READY, _FREEZE, _THAW = 1, 2, 3
_REQUEST = struct.Struct("=IIQ")
_ANSWER = struct.Struct("=IIIi")
_POINT = struct.Struct("=IiQQ")

_START_TIMEOUT = 10.0  # seconds
_EXPEDITED = Path("/sys/kernel/rcu_expedited")  # the watchdog turns it on while it freezes
_PATIENCE = 5.0  # seconds that a device may take to answer when its file system is thawed


class _State(IntEnum):
    IDLE, FREEZING, FROZEN, THAWING, THAWED, REFUSED, LOST, STUCK = range(8)


class _Point(NamedTuple):
    state: _State
    error: int
    freeze_ns: int
    thaw_ns: int


class _Answer(NamedTuple):
    operation: int
    expired: bool
    error: int
    points: list[_Point]


class WatchdogLostError(TimezeroError):
    """The watchdog was killed, or does not answer; what it had frozen was thawed here. There is no T0."""


class Freezer:
    """One freeze of some file systems, in the order of `points` (paths on them), thawed in reverse.

    The watchdog is started here, before anything is frozen, so that freezing itself needs nothing any more. Several
    paths on one file system are frozen once. Use it as a context manager: leaving it thaws, whatever happened.

    Raises UsageError for a path that is not there, TimezeroError when the watchdog cannot start.
    """

    def __init__(self, points: Iterable[str | os.PathLike[str]]) -> None:
        self.points: list[str] = []
        self.devices: list[int] = []  # st_dev of each point
        self._descriptors: list[int] = []
        self._suspect: set[int] = set()  # points that may be frozen through us
        self._process: int | None = None
        self._next = _FREEZE  # the operation that may come
        self._expedited = b""  # what _EXPEDITED was before
        with ExitStack() as undo:
            undo.callback(self._close_descriptors)
            self._open([os.fspath(point) for point in points])
            self._start()
            undo.pop_all()

    def __enter__(self) -> Freezer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sync(self) -> None:
        """Write out what is dirty, in the order of freezing, so that freezing has little left to do.

        Raises TimezeroError.
        """
        for point, descriptor in zip(self.points, self._descriptors, strict=True):
            try:
                _linux.syncfs(descriptor)
            except OSError as error:
                raise TimezeroError(f"{point}: its file system cannot be written out: {error.strerror}") from None

    def freeze(self, deadline_s: float) -> dict[str, int]:
        """Freeze; how long each file system took, in microseconds. `deadline_s` seconds from now on all are thawed.

        Raises DeadlineError when that was before all were frozen, TimezeroError when one cannot be frozen (EBUSY: it is
        already); then none is.
        """
        if deadline_s <= 0:
            raise ValueError("a deadline lies in the future")
        answer = self._ask(_FREEZE, deadline_s)
        self._note(answer)
        if all(point.state == _State.FROZEN for point in answer.points):
            return self._times(point.freeze_ns for point in answer.points)
        for name, point in zip(self.points, answer.points, strict=True):
            if point.state == _State.REFUSED:
                raise TimezeroError(f"{name} cannot be frozen: {_why(point.error)}; every file system is thawed")
        slow = [name for name, p in zip(self.points, answer.points, strict=True) if p.state == _State.FREEZING]
        raise DeadlineError(
            f"freezing took longer than {deadline_s:g} s"
            + (f" ({', '.join(slow)} does not answer)" if slow else "")
            + "; every file system is thawed, there is no T0"
        )

    def thaw(self) -> dict[str, int]:
        """Thaw; how long each took, in microseconds. When this returns, all were frozen without a break until now.

        Raises DeadlineError when the deadline had passed before, TimezeroError when somebody else thawed one, when one
        does not answer, or when the watchdog is gone: then what was formed since freeze() is no T0.
        """
        answer = self._ask(_THAW, 0)
        self._note(answer)
        if answer.expired:
            raise DeadlineError("the deadline passed while file systems were frozen; they were thawed, there is no T0")
        for name, point in zip(self.points, answer.points, strict=True):
            if point.state == _State.LOST:
                raise TimezeroError(f"{name} was thawed by somebody else while it had to be frozen: there is no T0")
            if point.state != _State.THAWED:
                raise TimezeroError(f"{name} could not be thawed: {_why(point.error)}")
        return self._times(point.thaw_ns for point in answer.points)

    def close(self) -> None:
        """Let go of the watchdog, which thaws whatever is frozen and ends. Safe to repeat."""
        if self._process is None:
            return
        pid, self._process = self._process, None
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also for whoever was forked and holds a copy
        self._socket.close()
        # Ours until it is waited for; whoever stopped it has done enough. Where SIGCHLD is ignored, it may have gone.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        if _ended_well(pid, _PATIENCE):
            self._suspect.clear()
        self._thaw_suspects()
        self._close_descriptors()

    # ---- the process ----

    def _open(self, paths: Sequence[str]) -> None:
        devices: set[int] = set()
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise UsageError(f"{path} cannot be frozen: {error.strerror}") from None
            device = os.fstat(descriptor).st_dev
            if device in devices:
                os.close(descriptor)
                continue
            devices.add(device)
            self.devices.append(device)
            self._descriptors.append(descriptor)
            self.points.append(path)
        if not 1 <= len(self.points) <= POINTS_MAX:
            raise UsageError(f"1 to {POINTS_MAX} file systems can be frozen together, not {len(self.points)}")

    def _start(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as started:
            started.enter_context(other)
            parent = os.pidfd_open(os.getpid())
            started.callback(os.close, parent)
            spares = []
            for descriptor in (other.fileno(), parent, *self._descriptors):
                spares.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _SPARE_DESCRIPTOR))
                started.callback(os.close, spares[-1])
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)
            ]
            actions += [(os.POSIX_SPAWN_DUP2, spare, _SOCKET + number) for number, spare in enumerate(spares)]
            try:
                self._process = os.posix_spawn(
                    _PROGRAM, [_PROGRAM.name, str(len(self.points))], {}, file_actions=actions
                )
            except OSError as error:
                self._socket.close()
                raise TimezeroError(f"the watchdog {_PROGRAM} cannot be started: {error.strerror}") from None
        try:
            ready = self._receive(_READY, _START_TIMEOUT)
            if ready.error:
                raise TimezeroError(f"the watchdog cannot lock its memory: {os.strerror(ready.error)} (ulimit -l)")
        except BaseException:
            self.close()
            raise

    def _ask(self, operation: int, deadline_s: float) -> _Answer:
        if self._process is None:
            raise ValueError("the freezer is closed")
        if operation != self._next:
            raise ValueError("a freezer freezes once, and thaws what it froze")
        self._next = _THAW if operation == _FREEZE else 0
        if operation == _FREEZE:
            with suppress(OSError):
                self._expedited = _EXPEDITED.read_bytes().strip()
            self._suspect = set(range(len(self.points)))
        try:
            self._socket.send(_REQUEST.pack(operation, 0, int(deadline_s * 1e9)))
        except OSError:
            self._watchdog_is_lost()
        return self._receive(operation, deadline_s + _PATIENCE)

    def _receive(self, operation: int, timeout: float) -> _Answer:
        end = time.monotonic() + timeout
        while True:
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                message = self._socket.recv(_ANSWER.size + POINTS_MAX * _POINT.size)
            except OSError:  # TimeoutError among them
                message = b""
            if not message:
                self._watchdog_is_lost()
            answer = _parse(message)
            if answer.operation == operation:
                return answer

    def _watchdog_is_lost(self) -> None:
        """Always raises."""
        suspects = self._thaw_suspects()
        if self._expedited == b"0":  # and it may have been killed before it put that back
            with suppress(OSError):
                _EXPEDITED.write_bytes(b"0")
        where = f": {', '.join(suspects)} may still be frozen" if suspects else "; every file system is thawed"
        raise WatchdogLostError(f"the watchdog that freezes file systems was killed or does not answer{where}")

    def _note(self, answer: _Answer) -> None:
        held = (_State.FREEZING, _State.FROZEN, _State.THAWING, _State.STUCK)
        self._suspect = {number for number, point in enumerate(answer.points) if point.state in held}

    def _thaw_suspects(self) -> list[str]:
        """Thaw here, each in a thread of its own: one may hang. The points that have not answered in time."""
        threads = []
        for number in sorted(self._suspect, reverse=True):
            descriptor = os.dup(self._descriptors[number])  # ours may be closed before a thread that hangs is done
            thread = threading.Thread(target=_thaw_quietly, args=(descriptor,), daemon=True)
            threads.append((self.points[number], thread))
        self._suspect = set()
        for _, thread in threads:
            thread.start()
        end = time.monotonic() + _PATIENCE
        for _, thread in threads:
            thread.join(max(end - time.monotonic(), 0))
        return [point for point, thread in threads if thread.is_alive()]

    def _times(self, nanoseconds: Iterable[int]) -> dict[str, int]:
        return {point: ns // 1000 for point, ns in zip(self.points, nanoseconds, strict=True)}

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def _parse(message: bytes) -> _Answer:
    operation, count, expired, error = _ANSWER.unpack_from(message)
    points = [_POINT.unpack_from(message, _ANSWER.size + number * _POINT.size) for number in range(count)]
    return _Answer(operation, bool(expired), error, [_Point(_State(state), *rest) for state, *rest in points])


def _why(error: int) -> str:
    if error == errno.EBUSY:
        return "it is frozen already, by somebody else"
    if error == errno.EOPNOTSUPP:
        return "its kind of file system cannot be"
    return os.strerror(error)


def _thaw_quietly(descriptor: int) -> None:
    try:
        _linux.thaw(descriptor)
    except OSError:
        pass  # it was not frozen
    finally:
        os.close(descriptor)


def _ended_well(pid: int, timeout: float) -> bool:
    """True when the process ended by itself; False when it was killed, or still waits for a device."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(timeout * 1000):
            return False
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) >= 0
    except ChildProcessError:  # SIGCHLD is ignored: nobody tells how it ended
        return False
    finally:
        os.close(descriptor)
