"""The control protocol over real Unix sockets: wire, server and client."""

import json
import os
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timezero.control import Client, ConnectionLostError, ControlError
from timezero.control.server import Answer, Peer, RequestError, Server, peer_allowed, peer_of
from timezero.control.wire import LINE_MAX, Channel, Disconnected, WireError, decode, encode
from timezero.errors import DeadlineError, LockedError, TimezeroError, UsageError

# ---- wire ----


@pytest.fixture
def channels():
    left, right = socket.socketpair()
    pair = Channel(left, accept_descriptors=True), Channel(right, accept_descriptors=True)
    yield pair
    for channel in pair:
        channel.close()


def test_messages_arrive_whole_and_in_order(channels):
    left, right = channels
    messages = [{"id": 1}, {"text": "\u00e9\n\u0000" * 1000}, {}]
    for message in messages:
        left.send(message)
    assert [right.receive(timeout=20) for _ in messages] == [(message, []) for message in messages]


def test_descriptors_belong_to_their_line(channels):
    left, right = channels
    files = [os.memfd_create(str(number)) for number in range(3)]
    left.send({"id": 0})
    left.send({"id": 1}, files[:2])
    left.send({"id": 2})
    left.send({"id": 3}, files[2:])
    received = [right.receive(timeout=20) for _ in range(4)]
    assert [len(descriptors) for _, descriptors in received] == [0, 2, 0, 1]
    assert received[1][0] == {"id": 1, "fds": 2}
    for ours, theirs in zip(files, received[1][1] + received[3][1], strict=True):
        assert os.fstat(ours).st_ino == os.fstat(theirs).st_ino
        assert not os.get_inheritable(theirs)
        os.close(ours)
        os.close(theirs)


def test_a_long_line_with_descriptors(channels):
    left, right = channels
    file = os.memfd_create("x")
    message = {"text": "x" * (LINE_MAX - 100)}
    sender = threading.Thread(target=left.send, args=(message, [file]))
    sender.start()
    received, descriptors = right.receive(timeout=20)
    sender.join()
    assert received == {**message, "fds": 1}
    for descriptor in [file, *descriptors]:
        os.close(descriptor)


def descriptors_open():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("claimed", [0, 2, "1", None])
def test_a_wrong_number_of_descriptors_is_fatal_and_leaks_none(channels, claimed):
    left, right = channels
    file = os.memfd_create("x")
    before = descriptors_open()
    socket.send_fds(left._sock, [encode({"fds": claimed})], [file])
    with pytest.raises(WireError) as error:
        right.receive(timeout=20)
    assert error.value.fatal
    assert descriptors_open() == before
    os.close(file)


def test_a_channel_that_takes_no_descriptors_gets_none():
    left, right = socket.socketpair()
    file = os.memfd_create("x")
    with left, right:
        before = descriptors_open()
        socket.send_fds(left, [b'{"fds": 1}\n'], [file])
        assert Channel(right).receive(timeout=20) == ({"fds": 1}, [])
        assert descriptors_open() == before
    os.close(file)


def test_a_line_without_end_is_fatal(channels):
    left, right = channels
    sender = threading.Thread(target=lambda: left._sock.sendall(b"x" * (LINE_MAX + 1)))
    sender.start()
    with pytest.raises(WireError, match="more than") as error:
        right.receive(timeout=20)
    assert error.value.fatal
    sender.join()


def test_timeouts_and_the_end(channels):
    left, right = channels
    left._sock.sendall(b'{"id"')
    with pytest.raises(TimeoutError):
        right.receive(timeout=0.05)
    left._sock.sendall(b": 1}\n")
    assert right.receive(timeout=20) == ({"id": 1}, [])  # a timeout loses nothing
    left.shutdown()
    with pytest.raises(Disconnected):
        right.receive(timeout=20)
    with pytest.raises(Disconnected):
        left.send({})


@pytest.mark.parametrize("line", [b"", b"x", b"1", b"[]", b'"x"', b"\xff", b"{", b"[" * 100_000, b'{"x": NaN}', b"\0"])
def test_what_is_no_message_is_told_so(line):
    with pytest.raises(WireError) as error:
        decode(line)
    assert not error.value.fatal


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)))
def test_encode_and_decode(message):
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == message


# ---- server ----


class Toy:
    """Operations for tests: echo, refuse, break, file, wait."""

    def __init__(self, peer):
        self.peer = peer
        self.closed = threading.Event()
        self.file = os.memfd_create("toy")
        os.write(self.file, b"toy")

    def handle(self, op, request):
        match op:
            case "hello":
                return Answer({"version": 1})
            case "echo":
                return Answer({"echo": request["text"]})
            case "refuse":
                raise RequestError(request["code"], "no")
            case "break":
                raise ZeroDivisionError("broken")
            case "file":
                return Answer({"size": 3}, (self.file, self.file))
        raise RequestError("bad-request", "op: unknown")

    def close(self):
        os.close(self.file)
        self.closed.set()


class Running:
    def __init__(self, path, **options):
        self.path = str(path)
        self.toys = []
        self.log = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.server = Server(self.listener, self._toy, log=self.log.append, **options)
        self.server.start()

    def _toy(self, peer):
        self.toys.append(Toy(peer))
        return self.toys[-1]

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(self.path)
        return sock

    def stop(self):
        self.server.stop(20)
        self.listener.close()


@pytest.fixture
def run(tmp_path):
    started = []

    def run(**options):
        started.append(Running(tmp_path / f"control{len(started)}", **options))
        return started[-1]

    yield run
    for running in started:
        running.stop()


def ask(sock, *lines):
    """Send raw lines; the answers, one each."""
    sock.sendall(b"".join(line + b"\n" for line in lines))
    stream = sock.makefile("rb")
    return [json.loads(stream.readline()) for _ in lines]


def test_answers_come_in_order_also_to_pipelined_requests(run):
    with run().connect() as sock:
        lines = [encode({"id": number, "op": "echo", "text": str(number)})[:-1] for number in range(50)]
        assert ask(sock, *lines) == [{"id": number, "ok": True, "echo": str(number)} for number in range(50)]


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"", None), (b"nonsense", None), (b"[]", None), (b"\xff", None), (b"{}", None),
        (b'{"op": "echo"}', None), (b'{"id": "1", "op": "echo"}', None), (b'{"id": true, "op": "echo"}', None),
        (b'{"id": -1, "op": "echo"}', None), (b'{"id": 1e3, "op": "echo"}', None),
        (b'{"id": 7}', 7), (b'{"id": 7, "op": 1}', 7), (b'{"id": 7, "op": "nonsense"}', 7),
    ],
)  # fmt: skip
def test_malformed_requests_are_answered_and_the_connection_lives(run, line, number):
    with run().connect() as sock:
        bad, good = ask(sock, line, b'{"id": 8, "op": "echo", "text": "x"}')
        assert (bad["id"], bad["ok"], bad["error"]["code"]) == (number, False, "bad-request")
        assert good == {"id": 8, "ok": True, "echo": "x"}


def test_an_endless_line_is_answered_and_closed(run):
    with run().connect() as sock:
        sender = threading.Thread(target=lambda: sock.sendall(b"x" * LINE_MAX))
        sender.start()
        stream = sock.makefile("rb")
        assert json.loads(stream.readline())["error"]["code"] == "bad-request"
        assert stream.readline() == b""
        sender.join()


def test_an_error_of_ours_is_internal_and_logged(run):
    running = run()
    with running.connect() as sock:
        broken, good = ask(sock, b'{"id": 1, "op": "break"}', b'{"id": 2, "op": "echo", "text": ""}')
        assert broken["error"]["code"] == "internal"
        assert good["ok"]
    assert any("ZeroDivisionError" in line for line in running.log)


def test_the_handler_is_closed_when_the_connection_goes(run):
    running = run()
    with running.connect() as sock:
        ask(sock, b'{"id": 1, "op": "echo", "text": ""}')
        assert not running.toys[0].closed.is_set()
    assert running.toys[0].closed.wait(20)


def test_stop_ends_connections_and_closes_their_handlers(run):
    running = run()
    with running.connect() as sock:
        ask(sock, b'{"id": 1, "op": "echo", "text": ""}')
        running.stop()
        assert running.toys[0].closed.is_set()
        assert sock.recv(1) == b""


def test_only_root_and_the_servers_user_may_control(run):
    ours = os.geteuid()
    assert [peer_allowed(Peer(1, uid, 1)) for uid in (0, ours, ours + 1, 4_000_000_000)] == [True, True, False, False]
    running = run(identify=lambda sock: Peer(1, ours + 1, 1))
    with running.connect() as sock:
        stream = sock.makefile("rb")
        assert json.loads(stream.readline())["error"]["code"] == "forbidden"
        assert stream.readline() == b""
    assert running.toys == []


def test_the_peer_is_who_the_kernel_says(run):
    running = run()
    with running.connect() as sock:
        ask(sock, b'{"id": 1, "op": "echo", "text": ""}')
        assert running.toys[0].peer == Peer(os.getpid(), os.geteuid(), os.getegid())
        assert peer_of(sock) == running.toys[0].peer


def test_connections_are_limited(run):
    running = run(connections=1)
    with running.connect() as first:
        ask(first, b'{"id": 1, "op": "echo", "text": ""}')
        with running.connect() as second:
            assert json.loads(second.makefile("rb").readline())["error"]["code"] == "limit"
        assert ask(first, b'{"id": 1, "op": "echo", "text": ""}')[0]["ok"]
    assert running.toys[0].closed.wait(20)


@settings(max_examples=30, deadline=None)
@given(garbage=st.binary(max_size=2000))
def test_garbage_harms_nobody(tmp_path_factory, garbage):
    running = Running(tmp_path_factory.mktemp("c") / "s")
    try:
        with running.connect() as bad:
            bad.sendall(garbage + b"\n")
            bad.shutdown(socket.SHUT_WR)
            while bad.recv(1 << 16):
                pass
        with Client(running.path) as client:
            assert client.call("echo", text="x")["echo"] == "x"
    finally:
        running.stop()


# ---- client ----


def test_call_with_and_without_descriptors(run):
    with Client(run().path) as client:
        assert client.call("echo", text="x")["echo"] == "x"
        reply, descriptors = client.call_for_descriptors("file")
        assert reply["fds"] == 2
        assert [os.pread(descriptor, 10, 0) for descriptor in descriptors] == [b"toy", b"toy"]
        for descriptor in descriptors:
            os.close(descriptor)
        before = descriptors_open()
        with pytest.raises(ControlError):
            client.call("file")
        assert descriptors_open() == before


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bad-request", UsageError), ("unknown-volume", UsageError), ("busy", LockedError), ("deadline", DeadlineError),
        ("limit", ControlError), ("unknown-session", ControlError), ("io", ControlError), ("new-one", ControlError),
    ],
)  # fmt: skip
def test_codes_become_errors_with_exit_codes(run, code, kind):
    with Client(run().path) as client, pytest.raises(kind) as error:
        client.call("refuse", code=code)
    assert isinstance(error.value, ControlError)
    assert error.value.code == code
    assert error.value.exit_code == (1 if kind is ControlError else kind.exit_code)


def test_nobody_serves_the_socket(tmp_path):
    for path in (tmp_path / "none", tmp_path / "stale"):
        if path.name == "stale":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        with pytest.raises(TimezeroError, match=r"nobody serves it; start `timezero serve`"):
            Client(path)


def test_a_server_that_goes_away(run):
    running = run()
    with Client(running.path) as client:
        running.stop()
        for _ in range(2):
            with pytest.raises(ConnectionLostError):
                client.call("echo", text="")


@pytest.mark.parametrize("answer", [b"nonsense\n", b'{"id": 99, "ok": true}\n', b'{"id": 1}\n', b""])
def test_a_server_that_makes_no_sense(tmp_path, answer):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve():
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(ConnectionLostError):
            Client(tmp_path / "s")
        server.join()


def test_a_server_that_does_not_answer(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(ConnectionLostError, match="within"):
            Client(tmp_path / "s", timeout=0.1)
