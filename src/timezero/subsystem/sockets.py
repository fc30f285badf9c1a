"""Listening sockets that never steal another server's, and never leave their names behind."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from timezero.errors import LockedError, TimezeroError, UsageError
from timezero.nbd.uri import Endpoint
from timezero.places import runtime_directory

BACKLOG = 128
_PATH_MAX = 107  # bytes: sun_path less its final NUL
_LOCK_WAIT = 5.0  # seconds


class UnixListener:
    """A listening Unix socket with mode 0600. Its name is removed on close, if it still is this socket's.

    A name that nobody listens on any more is taken over; one that somebody serves raises LockedError, one that is no
    socket UsageError. Servers that start or end at the same time take turns by a lock on the directory.
    """

    def __init__(self, path: str) -> None:
        self.path = str(Path(path).absolute())
        if len(os.fsencode(self.path)) > _PATH_MAX:
            raise UsageError(f"socket {self.path}: the path is longer than {_PATH_MAX} bytes")
        _make_runtime_directory(self.path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _directory_locked(self.path):
                _remove_stale(self.path)
                os.fchmod(self.socket.fileno(), 0o600)  # what bind gives the name, from its first moment on
                self.socket.bind(self.path)
                self._identity = _identity(self.path)
                self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            raise TimezeroError(f"socket {self.path}: {error.strerror}") from None
        except BaseException:
            self.socket.close()
            raise

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(socket=self.path)

    def close(self) -> None:
        """Safe to repeat."""
        if self.socket.fileno() < 0:
            return
        try:
            with _directory_locked(self.path):
                if _identity(self.path) == self._identity:
                    Path(self.path).unlink()
        except (OSError, LockedError):
            pass  # the name or its directory is gone, or stays behind as a stale one
        self.socket.close()


class TcpListener:
    """A listening TCP socket. Without `allow_remote` only loopback addresses: there is no TLS yet."""

    def __init__(self, host: str, port: int, *, allow_remote: bool = False) -> None:
        if not Endpoint(host=host).loopback and not allow_remote:
            raise UsageError(
                f"nbd://{host}: other machines could reach it, unencrypted and without a password; "
                "if you mean that, say --allow-remote"
            )
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            self.socket = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            raise TimezeroError(f"nbd://{host}:{port}: {error.strerror or error}") from None
        host, port = self.socket.getsockname()[:2]
        self.endpoint = Endpoint(host=host, port=port)

    def close(self) -> None:
        self.socket.close()


def _make_runtime_directory(path: str) -> None:
    """Only the default directory is made; a directory that the user named has to be there."""
    try:
        default = Path(runtime_directory())
    except UsageError:
        return
    if Path(path).parent == default:
        try:
            default.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise TimezeroError(f"directory {default}: {error.strerror}") from None


@contextmanager
def _directory_locked(path: str) -> Iterator[None]:
    descriptor = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LockedError(f"socket {path}: somebody keeps a lock on its directory") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"socket {path}: something else is there that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog says EAGAIN: somebody lives there
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except OSError:
            pass
    raise LockedError(f"socket {path}: another server listens there; stop it or choose another socket")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
