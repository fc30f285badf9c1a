"""The QEMU guest agent's protocol, against an agent that behaves as documented (qemu-ga-ref(7)), and against worse."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from timezero.errors import DeadlineError, TimezeroError
from timezero.quiesce import Quiesced, parse_all
from timezero.quiesce.agent import ANSWER_MAX

Behaviour = Callable[["FakeAgent", socket.socket], None]


class FakeAgent:
    """Serves one connection at a time. `behave`: what to do instead of answering, by command and turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = 0
        self.log: list[str] = []
        self.behave: dict[str, list[Behaviour | None]] = {}
        self.connections = 0
        self.greeting = b""
        self.piece = 1 << 20
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._stop = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        self._listener.settimeout(0.05)
        while not self._stop:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        connection.settimeout(10)  # of a whole sendall(): a reader may be slow, and is not to be hung up on for that
        connection.sendall(self.greeting)
        data = b""
        while not self._stop:
            if not select.select([connection], [], [], 0.05)[0]:
                continue
            more = connection.recv(4096)
            if not more:
                return
            data += more
            while b"\n" in data:
                line, data = data.split(b"\n", 1)
                self._answer(connection, line)

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        # 0xFF makes the agent forget what it had of a request before.
        request = json.loads(line.rpartition(b"\xff")[2])
        command = request["execute"]
        self.log.append(command)
        turns = self.behave.get(command, [])
        behaviour = turns.pop(0) if turns else None
        if behaviour:
            behaviour(self, connection)
            return
        if command == "guest-sync-delimited":
            self.say(connection, {"return": request["arguments"]["id"]}, b"\xff")
        else:
            self.say(connection, {"return": self.act(command)})

    def act(self, command: str) -> Any:
        if command == "guest-fsfreeze-status":
            return "frozen" if self.frozen else "thawed"
        if command == "guest-fsfreeze-freeze":
            self.frozen = 3
            return 3
        assert command == "guest-fsfreeze-thaw"
        count, self.frozen = self.frozen, 0
        return count

    def say(self, connection: socket.socket, answer: Any, before: bytes = b"") -> None:
        data = before + json.dumps(answer).encode() + b"\n"
        for start in range(0, len(data), self.piece):
            connection.sendall(data[start : start + self.piece])

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._listener.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path / "qga")
    yield made
    made.close()


def quiesce(agent: FakeAgent, deadline_s: float = 2.0, body: Callable[[], None] = lambda: None) -> Quiesced:
    with Quiesced(parse_all([f"qga:{agent.path}"]), deadline_s) as quiesced:
        body()
    return quiesced


def says(text: bytes) -> Behaviour:
    return lambda agent, connection: connection.sendall(text)


def error(words: str) -> Behaviour:
    return lambda agent, connection: agent.say(connection, {"error": {"class": "GenericError", "desc": words}})


def nothing(agent: FakeAgent, connection: socket.socket) -> None:
    pass


def hangs_up(agent: FakeAgent, connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def test_freezes_and_thaws(agent: FakeAgent) -> None:
    states: list[int] = []
    quiesced = quiesce(agent, body=lambda: states.append(agent.frozen))
    assert states == [3] and agent.frozen == 0
    assert agent.log == [
        "guest-sync-delimited",
        "guest-fsfreeze-status",
        "guest-fsfreeze-freeze",
        "guest-fsfreeze-thaw",
    ]
    assert set(quiesced.times[f"qga:{agent.path}"]) == {"pre_us", "post_us"}


def test_thaws_when_the_suspension_fails(agent: FakeAgent) -> None:
    def fail() -> None:
        assert agent.frozen
        raise DeadlineError("too late")

    with pytest.raises(DeadlineError):
        quiesce(agent, body=fail)
    assert agent.frozen == 0


def test_what_an_earlier_client_left_is_passed_over(agent: FakeAgent) -> None:
    agent.greeting = b'{"return": {}}\n{"ret'
    agent.behave["guest-sync-delimited"] = [
        lambda agent, connection: agent.say(connection, {"return": -1}, b'urn": 7}\n\xff'),
    ]
    # The stale answer to somebody else's sync is followed by ours.
    real = agent._answer

    def answer(connection: socket.socket, line: bytes) -> None:
        real(connection, line)
        if len(agent.log) == 1:
            real(connection, line)

    agent._answer = answer  # type: ignore[method-assign]
    quiesce(agent)
    assert agent.log.count("guest-fsfreeze-thaw") == 1


def test_answers_may_come_in_pieces(agent: FakeAgent) -> None:
    agent.piece = 1
    quiesce(agent)
    assert agent.frozen == 0


def test_a_guest_that_somebody_else_froze_is_left_alone(agent: FakeAgent) -> None:
    agent.frozen = 2
    with pytest.raises(TimezeroError, match="already, not thawed"):
        quiesce(agent)
    assert agent.frozen == 2


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (error("failed to freeze /: Device busy"), "the agent says: failed to freeze /: Device busy"),
        (error("x" * 5000), "the agent says: x{300}$"),
        (says(b'{"error": 1}\n'), "makes no sense"),
        (says(b'{"error": {"desc": [1]}}\n'), "gave no reason"),
        (says(b"[[[[\n"), "makes no sense"),
        (says(b"[" * 100_000 + b"\n"), "makes no sense"),
        (says(b"\xfe\xfe\n"), "makes no sense"),
        (says(b"1" * 10_000 + b"\n"), "makes no sense"),
        (says(b'{"return": "three"}\n'), "no number of file systems"),
        (says(b'{"return": true}\n'), "no number of file systems"),
        (says(b'{"return": -1}\n'), "no number of file systems"),
        (says(b'{"return": 0}\n'), "froze no file system"),
        (hangs_up, "closed the connection"),
        (nothing, "took longer than"),
    ],
)
def test_a_freeze_that_fails_is_thawed(agent: FakeAgent, behaviour: Behaviour, told: str) -> None:
    def freezes_first(agent: FakeAgent, connection: socket.socket) -> None:
        agent.frozen = 3  # the worst: it did, and does not say so
        behaviour(agent, connection)

    agent.behave["guest-fsfreeze-freeze"] = [freezes_first]
    with pytest.raises(TimezeroError, match=told) as raised:
        quiesce(agent, deadline_s=0.5)
    assert agent.frozen == 0
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_an_answer_without_end_is_not_read_to_it(agent: FakeAgent) -> None:
    agent.behave["guest-fsfreeze-freeze"] = [lambda a, c: c.sendall(b"x" * (ANSWER_MAX + 100_000))]
    with pytest.raises(TimezeroError, match="more than 1048576 bytes"):
        quiesce(agent)
    agent.behave["guest-sync-delimited"] = [lambda a, c: c.sendall(b"x\n" * ANSWER_MAX)]
    with pytest.raises(TimezeroError, match="more than 1048576 bytes"):
        quiesce(agent)
    agent.behave["guest-sync-delimited"] = [lambda a, c: c.sendall((b"x" * 1000 + b'\xff{"return": 0}\n') * 5000)]
    with pytest.raises(TimezeroError, match="without end"):
        quiesce(agent)


@pytest.mark.parametrize("behaviour", [error("not now"), hangs_up, nothing, says(b"nonsense\n")])
def test_a_thaw_is_tried_once_more(agent: FakeAgent, behaviour: Behaviour) -> None:
    agent.behave["guest-fsfreeze-thaw"] = [behaviour]
    quiesce(agent)
    assert agent.frozen == 0 and agent.connections == 2
    assert agent.log.count("guest-fsfreeze-thaw") == 2


def test_a_guest_that_stays_frozen_is_told(agent: FakeAgent) -> None:
    agent.behave["guest-fsfreeze-thaw"] = [error("never"), error("never")]
    with pytest.raises(TimezeroError, match="twice: the agent says: never: the guest may still be frozen"):
        quiesce(agent)
    agent.frozen = 0
    agent.behave["guest-fsfreeze-thaw"] = [nothing, nothing]
    began = time.monotonic()
    with pytest.raises(TimezeroError, match="twice: no answer: the guest may still be frozen"):
        quiesce(agent, deadline_s=0.5)
    assert time.monotonic() - began < 5


def test_a_guest_that_thawed_by_itself_was_not_still(agent: FakeAgent) -> None:
    """Windows thaws by itself after ten seconds."""

    def thaw() -> None:
        agent.frozen = 0

    with pytest.raises(TimezeroError, match="was thawed by somebody else before T0 was secured"):
        quiesce(agent, body=thaw)


def test_nobody_there(tmp_path: Path) -> None:
    path = tmp_path / "qga"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    with pytest.raises(TimezeroError, match="nobody listens"), Quiesced(parse_all([f"qga:{path}"]), 0.3):
        pass
    listener.listen(0)
    clients = []
    for _ in range(3):  # the channel is somebody else's: connections wait, or do not even get that far
        with pytest.raises(TimezeroError, match=r"within 0\.3 s"), Quiesced(parse_all([f"qga:{path}"]), 0.3):
            pass
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex(str(path))
        clients.append(client)
    for each in (*clients, listener):
        each.close()
