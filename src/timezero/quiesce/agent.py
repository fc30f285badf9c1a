"""qga:SOCKET: the QEMU guest agent freezes all file systems of its machine (qemu-ga-ref(7)).

The agent may be slow, gone, of another version, or somebody else: everything it says is bounded and checked. One
connection at a time is served, and what an earlier client left unread may still be in it: so each connection begins
with guest-sync-delimited, whose answer comes after a byte 0xFF that no other answer holds.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
from typing import Any

from timezero.errors import TimezeroError, UsageError
from timezero.quiesce.hooks import Context, Hook
from timezero.quiesce.patience import Interrupted, Patience

ANSWER_MAX = 1 << 20  # bytes of one answer, and of what is passed over before the sentinel
_SENTINEL = b"\xff"
_SAID_MAX = 300  # characters of the agent's own words in an error


class Agent:
    """A connection to a guest agent. Raises TimezeroError (in words, without naming the socket), TimeoutError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._data = b""

    @property
    def is_connected(self) -> bool:
        """Has it been in step until now?"""
        return self._socket is not None

    def connect(self, patience: Patience) -> None:
        """Connect, and get in step."""
        self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._connect(self._socket, patience)
            self._synchronize(patience)
        except BaseException:
            self.close()
            raise

    def _connect(self, sock: socket.socket, patience: Patience) -> None:
        while True:
            try:
                return sock.connect(self._path)
            except BlockingIOError:  # the backlog is full
                patience.pause(0.02)
            except (FileNotFoundError, ConnectionRefusedError):
                raise TimezeroError("nobody listens there: does the machine run, with this agent channel?") from None
            except OSError as error:
                raise TimezeroError(f"cannot be connected to: {error.strerror or error}") from None

    def _synchronize(self, patience: Patience) -> None:
        number = secrets.randbelow(1 << 31)
        # The sentinel makes the agent drop what an earlier client left half-said.
        self._send(_SENTINEL + _request("guest-sync-delimited", {"id": number}), patience)
        passed = 0
        while True:
            try:
                line = self._take(_SENTINEL, patience)
                passed += len(line)
                if passed > ANSWER_MAX:
                    raise TimezeroError("talks without end: is it a guest agent?")
                # An answer to an earlier client's sync may be in the way.
                if _answer(self._take(b"\n", patience)) == number:
                    return
            except TimeoutError:
                raise TimezeroError(
                    f"does not answer within {patience.seconds:g} s: does the agent run in the machine, and does "
                    "nobody else (libvirt) hold its channel?"
                ) from None

    def call(self, command: str, patience: Patience) -> Any:
        """Run a command of the agent's; its result. After anything but an error of the agent's it is disconnected."""
        try:
            self._send(_request(command, {}), patience)
            line = self._take(b"\n", patience)
            return _answer(line)
        except _AgentSays:
            raise
        except BaseException:
            self.close()
            raise

    def _send(self, data: bytes, patience: Patience) -> None:
        while data:
            sock = self._live()
            patience.wait((sock.fileno(), select.POLLOUT))
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise TimezeroError(f"the connection broke: {error.strerror or error}") from None

    def _take(self, end: bytes, patience: Patience) -> bytes:
        """What comes before `end`, which is taken too."""
        looked = 0
        while (place := self._data.find(end, looked)) < 0:
            looked = len(self._data)
            if looked > ANSWER_MAX:
                raise TimezeroError(f"answers with more than {ANSWER_MAX} bytes: is it a guest agent?")
            self._data += self._receive(patience)
        taken, self._data = self._data[:place], self._data[place + len(end) :]
        return taken

    def _receive(self, patience: Patience) -> bytes:
        sock = self._live()
        while True:
            patience.wait((sock.fileno(), select.POLLIN))
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError as error:
                raise TimezeroError(f"the connection broke: {error.strerror or error}") from None
            if not data:
                raise TimezeroError("closed the connection")
            return data

    def _live(self) -> socket.socket:
        if self._socket is None:
            raise TimezeroError("the connection is closed")
        return self._socket

    def close(self) -> None:
        """Safe to repeat."""
        sock, self._socket = self._socket, None
        self._data = b""
        if sock:
            sock.close()


class _AgentSays(TimezeroError):
    """The agent refused; it is still in step."""


def _request(command: str, arguments: dict[str, Any]) -> bytes:
    request: dict[str, Any] = {"execute": command}
    if arguments:
        request["arguments"] = arguments
    return json.dumps(request).encode() + b"\n"


def _answer(line: bytes) -> Any:
    """The result in an answer. Raises TimezeroError."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and "return" in answer:
        return answer["return"]
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise TimezeroError(f"answers {line[:60]!r}, which makes no sense: is it a guest agent?")
    words = error.get("desc") or error.get("class")
    raise _AgentSays(f"the agent says: {words[:_SAID_MAX]}" if isinstance(words, str) else "the agent gave no reason")


class AgentHook(Hook):
    """All file systems of one guest."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self._path = path
        self._agent = Agent(path)
        self._asked = False  # from the moment that the guest may be frozen by us
        self._frozen = 0

    def check(self) -> None:
        """Is anything there?"""
        if not os.path.exists(self._path):
            raise UsageError(f"quiesce {self.label}: there is no such socket: does the machine run?")

    def prepare(self, patience: Patience) -> None:
        """Connect, and see that nobody else holds the guest frozen."""
        self._agent.connect(patience)
        status = self._agent.call("guest-fsfreeze-status", patience)
        if status != "thawed":
            word = repr(status)[:40]
            raise TimezeroError(f"the guest is {word} already, not thawed: thaw it first, or wait for whoever froze it")

    def pre(self, context: Context, patience: Patience) -> None:
        """Freeze."""
        self._asked = True
        frozen = self._agent.call("guest-fsfreeze-freeze", patience)
        self._frozen = _count(frozen)
        if self._frozen == 0:
            raise TimezeroError("the guest froze no file system: see the agent's settings")

    def post(self, context: Context, patience: Patience) -> None:
        """Thaw, and once more when that fails."""
        if not self._asked:
            return
        try:
            if self._thaw(patience.part(0.5)) == 0 and self._frozen > 0:
                raise _Thawed("was thawed by somebody else before T0 was secured: run the job again")
        except _Thawed:
            raise
        except (TimeoutError, TimezeroError):
            self._thaw_again(patience)

    def _thaw_again(self, patience: Patience) -> None:
        self._agent.close()
        try:
            # That nothing is left to be thawed proves nothing here: the first attempt may have done it.
            self._thaw(patience)
        except (TimeoutError, TimezeroError) as error:
            if isinstance(error, Interrupted):
                raise
            why = str(error) or "no answer"
            raise TimezeroError(
                f"cannot be thawed, twice: {why}: the guest may still be frozen: have its agent run "
                "guest-fsfreeze-thaw, or reset it"
            ) from None

    def _thaw(self, patience: Patience) -> int:
        if not self._agent.is_connected:
            self._agent.connect(patience)
        return _count(self._agent.call("guest-fsfreeze-thaw", patience))

    def close(self) -> None:
        """Disconnect."""
        self._agent.close()


class _Thawed(TimezeroError):
    pass


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 1 << 20:
        raise TimezeroError(f"answers {repr(value)[:60]}, which is no number of file systems: is it a guest agent?")
    return value
