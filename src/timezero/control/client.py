"""The client's side of the control protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from timezero._version import __version__
from timezero.control.wire import VERSION, Channel, Disconnected, WireError
from timezero.errors import DeadlineError, LockedError, TimezeroError, UsageError

TIMEOUT = 30.0  # seconds for an answer, unless the request says otherwise


class ControlError(TimezeroError):
    """The storage subsystem refused a request. `code` is one of docs/control-protocol.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ConnectionLostError(TimezeroError):
    """The control connection is gone, and with it every session that was prepared over it."""


class _Usage(ControlError, UsageError):
    exit_code = UsageError.exit_code


class _Locked(ControlError, LockedError):
    exit_code = LockedError.exit_code


class _Deadline(ControlError, DeadlineError):
    exit_code = DeadlineError.exit_code


_ERRORS: dict[str, type[ControlError]] = {
    "bad-request": _Usage,
    "unknown-volume": _Usage,
    "busy": _Locked,
    "deadline": _Deadline,
}


class Client:
    """A control connection. Any failure inside a call, also Ctrl-C, closes it: the stream may be out of step.

    Errors that the server answers are ControlError, and UsageError, LockedError or DeadlineError as well where the code
    says so; a connection that breaks is ConnectionLostError.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self._path = os.fspath(path)
        self._timeout = timeout
        self._next = 1
        self._posted = (0, "")
        self._channel: Channel | None = Channel(_connect(self._path, timeout), accept_descriptors=True)
        try:
            self.server = self.call("hello", version=VERSION, client=f"timezero {__version__}")
        except BaseException:
            self.close()
            raise

    def call(self, op: str, *, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """One request and its answer; answers with descriptors are refused. timeout: seconds."""
        self.post(op, timeout=timeout, **fields)
        return self.answer(timeout=timeout)

    def call_for_descriptors(
        self, op: str, *, timeout: float | None = None, **fields: Any
    ) -> tuple[dict[str, Any], list[int]]:
        """One request, its answer, and the descriptors that came along, which are the caller's to close."""
        self.post(op, timeout=timeout, **fields)
        return self._receive(timeout)

    def post(self, op: str, *, timeout: float | None = None, **fields: Any) -> None:
        """Send a request without waiting for its answer, so that several servers work at the same time: `answer`
        must follow before the next request.
        """
        with self._closed_by_failure(op, timeout) as channel:
            number, self._next = self._next, self._next + 1
            self._posted = number, op
            channel.send({"id": number, "op": op, **fields}, timeout=self._limit(timeout))

    def answer(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The answer to the request that was posted; one with descriptors is refused. timeout: seconds."""
        reply, descriptors = self._receive(timeout)
        if descriptors:
            _close_all(descriptors)
            raise ControlError("internal", f"control socket {self._path}: unexpected descriptors in a reply")
        return reply

    def _receive(self, timeout: float | None) -> tuple[dict[str, Any], list[int]]:
        number, op = self._posted
        with self._closed_by_failure(op, timeout) as channel:
            reply, descriptors = channel.receive(timeout=self._limit(timeout))
            if reply.get("id") not in (number, None) or not isinstance(reply.get("ok"), bool):
                _close_all(descriptors)
                raise WireError("an answer to something else", fatal=True)
        if not reply["ok"]:
            _close_all(descriptors)
            raise _refused(reply)
        return reply, descriptors

    def _limit(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    @contextlib.contextmanager
    def _closed_by_failure(self, op: str, timeout: float | None) -> Iterator[Channel]:
        if self._channel is None:
            raise ConnectionLostError(f"control socket {self._path}: the connection is closed")
        try:
            yield self._channel
        except TimeoutError:
            self.close()
            raise ConnectionLostError(
                f"control socket {self._path}: no answer to {op} within {self._limit(timeout):g} s"
            ) from None
        except (Disconnected, WireError) as error:
            self.close()
            raise ConnectionLostError(f"control socket {self._path}: connection lost in {op}: {error}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Safe to repeat. Sessions that were not ended are cancelled by the server."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _connect(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect_within(sock, path, timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise TimezeroError(
            f"control socket {path}: nobody serves it; start `timezero serve` or name another one with --control"
        ) from None
    except OSError as error:
        sock.close()
        raise TimezeroError(f"control socket {path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_within(sock: socket.socket, path: str, timeout: float) -> None:
    """A full backlog answers at once (EAGAIN) instead of making a socket with a timeout wait."""
    sock.settimeout(timeout)
    deadline = time.monotonic() + timeout
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _refused(reply: dict[str, Any]) -> ControlError:
    error = reply.get("error")
    error = error if isinstance(error, dict) else {}
    code = str(error.get("code", "internal"))
    return _ERRORS.get(code, ControlError)(code, str(error.get("message", "the server gave no reason")))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
