"""The handshake over a socket pair: a scripted client on one end, the real server's code on the other."""

import contextlib
import socket
import struct
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timezero.nbd.constants import Info, Option, Reply
from timezero.nbd.handshake import OPTION_BYTES_MAX, OPTIONS_MAX, Export, Handshake, HandshakeError, Negotiated
from timezero.nbd.server import Server

FIXED, NO_ZEROES = 1, 2
FLAGS = 0b1111_1110_1101  # SEND_DF (bit 7) is one of them
DISK = Export("disk", 1 << 20, FLAGS, 65536, "a disk")
OTHER = Export("other", 12345, FLAGS)


class Exports:
    def __init__(self, *exports):
        self._exports = {export.name: export for export in exports}

    def names(self):
        return list(self._exports)

    def find(self, name):
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)


class Client:
    def __init__(self, *exports, timeout=20.0, flags=FIXED | NO_ZEROES):
        self.sock, self.server_end = socket.socketpair()
        self.sock.settimeout(20)
        self.pool = ThreadPoolExecutor(1)
        handshake = Handshake(self.server_end, Exports(*(exports or (DISK, OTHER))), timeout)
        self.result: Future[Negotiated | None] = self.pool.submit(handshake.run)
        assert struct.unpack(">8s8sH", self.read(18)) == (b"NBDMAGIC", b"IHAVEOPT", FIXED | NO_ZEROES)
        if flags is not None:
            self.sock.sendall(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        self.pool.shutdown(wait=True)
        self.server_end.close()

    def read(self, length):
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            assert piece, "the server went away"
            data += piece
        return data

    def option(self, option, data=b""):
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)

    def reply(self, option):
        magic, echoed, kind, length = struct.unpack(">QIII", self.read(20))
        assert (magic, echoed) == (0x3E889045565A9, option)
        return kind, self.read(length)

    def ask(self, option, data=b""):
        """All replies to an option: [(kind, data)], the final one last."""
        self.option(option, data)
        replies = [self.reply(option)]
        while replies[-1][0] in (Reply.SERVER, Reply.INFO, Reply.META_CONTEXT):
            replies.append(self.reply(option))
        return replies

    def refusal(self, option, data=b""):
        [(kind, message)] = self.ask(option, data)
        assert kind >= 1 << 31
        assert message.decode()
        return kind

    def ended_badly(self):
        with pytest.raises(HandshakeError):
            self.result.result(20)
        return True


def text(string):
    return struct.pack(">I", len(string.encode())) + string.encode()


def info(name, *wanted):
    return text(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def context(name, *queries):
    return text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))


def test_go_tells_what_was_asked_for_and_enters_transmission():
    with Client() as client:
        *infos, (final, _) = client.ask(Option.GO, info("disk", Info.BLOCK_SIZE, Info.NAME, Info.DESCRIPTION, 99))
        assert final == Reply.ACK
        assert {kind for kind, _ in infos} == {Reply.INFO}
        told = {struct.unpack(">H", data[:2])[0]: data[2:] for _, data in infos}
        assert struct.unpack(">QH", told[Info.EXPORT]) == (DISK.size, FLAGS & ~(1 << 7))
        assert told[Info.NAME] == b"disk"
        assert told[Info.DESCRIPTION] == b"a disk"
        assert struct.unpack(">III", told[Info.BLOCK_SIZE]) == (1, 65536, 32 << 20)
        assert client.result.result(20) == Negotiated(DISK, structured=False, base_allocation_id=None)


def test_info_stays_in_the_handshake_and_agrees_with_go():
    with Client() as client:
        first = client.ask(Option.INFO, info("disk", Info.BLOCK_SIZE))
        assert first == client.ask(Option.GO, info("disk", Info.BLOCK_SIZE))
        assert client.result.result(20) is not None


def test_a_request_behind_the_last_option_is_not_read():
    with Client() as client:
        data = info("disk")
        client.sock.sendall(b"IHAVEOPT" + struct.pack(">II", Option.GO, len(data)) + data + b"first request")
        client.result.result(20)
        assert client.server_end.recv(100) == b"first request"


@pytest.mark.parametrize(("flags", "zeroes"), [(FIXED | NO_ZEROES, 0), (FIXED, 124), (0, 124)])
def test_export_name(flags, zeroes):
    with Client(flags=flags) as client:
        client.option(Option.EXPORT_NAME, b"other")
        answer = client.read(10 + zeroes)
        assert struct.unpack(">QH", answer[:10]) == (12345, FLAGS & ~(1 << 7))
        assert answer[10:] == bytes(zeroes)
        assert client.result.result(20) == Negotiated(OTHER, structured=False, base_allocation_id=None)
        client.server_end.close()
        assert client.sock.recv(1) == b""  # nothing more was sent


@pytest.mark.parametrize("name", [b"nobody", b"", b"\xff", b"x" * 5000])
def test_export_name_cannot_be_refused_but_by_closing(name):
    with Client() as client:
        client.option(Option.EXPORT_NAME, name)
        assert client.ended_badly()


def test_the_empty_name_is_the_only_export():
    with Client(DISK) as client:
        client.ask(Option.GO, info(""))
        assert client.result.result(20).export == DISK


def test_list():
    with Client() as client:
        assert client.refusal(Option.LIST, b"data") == Reply.ERR_INVALID
        assert client.ask(Option.LIST) == [
            (Reply.SERVER, text("disk")), (Reply.SERVER, text("other")), (Reply.ACK, b"")
        ]  # fmt: skip


def test_abort_is_answered_also_with_data():
    with Client() as client:
        assert client.ask(Option.ABORT, b"junk") == [(Reply.ACK, b"")]
        assert client.result.result(20) is None


def test_abort_without_waiting_for_the_answer():
    with Client() as client:
        client.option(Option.ABORT)
        client.sock.close()
        assert client.result.result(20) is None


@pytest.mark.parametrize("option", [Option.STARTTLS, Option.EXTENDED_HEADERS, 4, 12, 0, 0xFFFFFFFF])
def test_what_is_not_supported_is_refused_and_the_handshake_goes_on(option):
    with Client() as client:
        assert client.refusal(option) == Reply.ERR_UNSUP
        assert client.ask(Option.STRUCTURED_REPLY) == [(Reply.ACK, b"")]


def test_starttls_with_data():
    with Client() as client:
        assert client.refusal(Option.STARTTLS, b"x") == Reply.ERR_INVALID


@pytest.mark.parametrize("option", [Option.INFO, Option.GO])
@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (info("nobody"), Reply.ERR_UNKNOWN),
        (info(""), Reply.ERR_UNKNOWN),  # there are two exports
        (b"", Reply.ERR_INVALID),
        (struct.pack(">I", 0xFFFFFFFF), Reply.ERR_INVALID),
        (text("disk") + struct.pack(">HH", 2, 3), Reply.ERR_INVALID),
        (info("disk") + b"x", Reply.ERR_INVALID),
        (text("disk")[:-1], Reply.ERR_INVALID),
        (struct.pack(">I", 1) + b"\xff" + struct.pack(">H", 0), Reply.ERR_INVALID),
        (info("x" * 5000), Reply.ERR_TOO_BIG),
    ],
)
def test_bad_go_and_info_are_refused(option, data, refusal):
    with Client() as client:
        assert client.refusal(option, data) == refusal
        client.ask(Option.GO, info("disk"))
        assert client.result.result(20).export == DISK


def test_meta_contexts_need_structured_replies():
    with Client() as client:
        for option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            assert client.refusal(option, context("disk", "base:allocation")) == Reply.ERR_INVALID
        assert client.refusal(Option.STRUCTURED_REPLY, b"x") == Reply.ERR_INVALID


def test_list_meta_context():
    name = b"base:allocation"
    with Client() as client:
        client.ask(Option.STRUCTURED_REPLY)
        for queries, there in [((), 1), (("base:",), 1), (("base:allocation", "base:"), 1), (("x:", "base:x"), 0)]:
            *found, final = client.ask(Option.LIST_META_CONTEXT, context("disk", *queries))
            assert final == (Reply.ACK, b"")
            assert found == [(Reply.META_CONTEXT, bytes(4) + name)] * there
        assert client.refusal(Option.LIST_META_CONTEXT, context("nobody")) == Reply.ERR_UNKNOWN
        assert client.refusal(Option.LIST_META_CONTEXT, context("disk", "base:")[:-1]) == Reply.ERR_INVALID
        assert client.refusal(Option.LIST_META_CONTEXT, text("disk") + b"\xff" * 4) == Reply.ERR_INVALID


@pytest.mark.parametrize(
    ("selections", "go", "selected"),
    [
        ([("disk", "base:allocation")], "disk", True),
        ([("disk", "base:allocation", "base:allocation", "qemu:x")], "disk", True),
        ([("disk", "base:")], "disk", False),
        ([("disk",)], "disk", False),
        ([("other", "base:allocation")], "disk", False),  # bound to the export's name
        ([("disk", "base:allocation"), ("disk",)], "disk", False),  # replaced
        ([("disk", "base:allocation"), ("nobody", "base:allocation")], "disk", False),  # also when it fails
        ([("disk", "base:allocation"), ("other", "base:allocation")], "other", True),
        ([], "disk", False),
    ],
)
def test_set_meta_context(selections, go, selected):
    with Client() as client:
        client.ask(Option.STRUCTURED_REPLY)
        for selection in selections:
            client.ask(Option.SET_META_CONTEXT, context(*selection))
        (_, export), _ = client.ask(Option.GO, info(go))
        assert struct.unpack(">HQH", export)[2] == FLAGS  # structured: SEND_DF may be told
        negotiated = client.result.result(20)
        assert negotiated.structured
        assert (negotiated.base_allocation_id is not None) is selected


def test_the_context_id_told_is_the_one_negotiated():
    with Client() as client:
        client.ask(Option.STRUCTURED_REPLY)
        (kind, data), _ = client.ask(Option.SET_META_CONTEXT, context("disk", "base:allocation"))
        assert kind == Reply.META_CONTEXT
        client.ask(Option.GO, info("disk"))
        assert client.result.result(20).base_allocation_id == struct.unpack(">I", data[:4])[0]


def test_everything_in_single_bytes():
    data = info("disk", Info.BLOCK_SIZE)
    stream = b"IHAVEOPT" + struct.pack(">II", Option.STRUCTURED_REPLY, 0)
    stream += b"IHAVEOPT" + struct.pack(">II", Option.GO, len(data)) + data
    with Client() as client:
        for position in range(len(stream)):
            client.sock.sendall(stream[position : position + 1])
        negotiated = client.result.result(20)
        assert (negotiated.export, negotiated.structured) == (DISK, True)


@pytest.mark.parametrize("flags", [4, 0xFFFFFFFF])
def test_unknown_client_flags_end_the_connection(flags):
    with Client(flags=flags) as client:
        assert client.ended_badly()


def test_without_fixed_newstyle_there_is_only_export_name():
    with Client(flags=0) as client:
        client.option(Option.LIST)
        assert client.ended_badly()


def test_bad_magic_and_oversized_options_end_the_connection():
    for junk in (b"IHAVEOPS" + bytes(8), b"IHAVEOPT" + struct.pack(">II", Option.LIST, OPTION_BYTES_MAX + 1)):
        with Client() as client:
            client.sock.sendall(junk)
            assert client.ended_badly()


def test_the_number_of_options_is_bounded():
    with Client() as client:
        for _ in range(OPTIONS_MAX):
            assert client.refusal(Option.STARTTLS) == Reply.ERR_UNSUP
        assert client.ended_badly()


def test_one_deadline_for_all_of_it():
    with Client(timeout=0.3) as client:
        with contextlib.suppress(OSError):
            for _ in range(40):  # never silent for long, and still too slow
                client.sock.sendall(b"I"[:1])
                if client.result.done():
                    break
                time.sleep(0.05)
        assert client.ended_badly()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_never_does_worse_than_end_its_connection(garbage, as_option):
    sock, server_end = socket.socketpair()
    with sock, server_end:
        head = struct.pack(">I", FIXED) + b"IHAVEOPT" if as_option else b""
        sock.sendall(head + garbage)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(HandshakeError):
            Handshake(server_end, Exports(DISK), 5).run()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*Option, 4, 12]),
            st.one_of(
                st.binary(max_size=40),
                st.builds(info, st.sampled_from(["disk", "x", ""]), st.integers(0, 5)),
                st.builds(context, st.sampled_from(["disk", "x"]), st.sampled_from(["base:", "base:allocation"])),
            ),
        ),
        max_size=12,
    )
)
def test_any_sequence_of_options_ends_in_an_agreement_or_a_clean_end(options):
    sock, server_end = socket.socketpair()
    with sock, server_end:
        sock.sendall(struct.pack(">I", FIXED))
        for option, data in options:
            sock.sendall(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data)
        sock.shutdown(socket.SHUT_WR)
        try:
            agreed = Handshake(server_end, Exports(DISK), 5).run()
        except HandshakeError:
            return
        ends = {Option.GO, Option.EXPORT_NAME, Option.ABORT}
        assert ends & {option for option, _ in options}
        assert agreed is None or agreed.export == DISK


# ---- the accept loop ----


class Listening:
    """A Server on a Unix socket, which collects what it would hand to a reactor."""

    def __init__(self, directory, **options):
        self.path = str(directory / "s")
        self.adopted = []
        self.called = threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.server = Server([self.listener], Exports(DISK), self._adopt, **options)
        self.server.start()

    def _adopt(self, descriptor, negotiated):
        self.adopted.append((socket.socket(fileno=descriptor), negotiated))
        self.called.set()

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(self.path)
        return sock

    def negotiate(self):
        sock = self.connect()
        sock.sendall(struct.pack(">I", FIXED | NO_ZEROES) + b"IHAVEOPT" + struct.pack(">II", Option.EXPORT_NAME, 0))
        return sock

    def stop(self):
        self.server.stop()
        self.listener.close()
        for sock, _ in self.adopted:
            sock.close()


@pytest.fixture
def listening(tmp_path):
    started = []

    def start(**options):
        started.append(Listening(tmp_path, **options))
        return started[-1]

    yield start
    for item in started:
        item.stop()


def test_a_negotiated_socket_is_handed_over_and_stays_open(listening):
    server = listening()
    with server.negotiate() as client:
        assert server.called.wait(20)
        adopted, negotiated = server.adopted[0]
        assert negotiated.export == DISK
        assert adopted.gettimeout() is None
        adopted.sendall(b"from the reactor")
        assert client.recv(100)[-16:] == b"from the reactor"


def test_an_idle_tcp_client_that_vanishes_is_noticed_within_two_minutes():
    adopted = []
    called = threading.Event()

    def adopt(descriptor, _):
        adopted.append(socket.socket(fileno=descriptor))
        called.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server([listener], Exports(DISK), adopt)
        server.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(struct.pack(">I", FIXED) + b"IHAVEOPT" + struct.pack(">II", Option.EXPORT_NAME, 0))
            assert called.wait(20)
        server.stop()
    with adopted[0] as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count <= 120
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)  # nbd_peer.c says why not


def test_a_malformed_connection_ends_and_the_next_is_served(listening):
    server = listening()
    with server.connect() as bad:
        bad.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while bad.recv(100):
                pass
    with server.negotiate():
        assert server.called.wait(20)


def test_more_clients_than_places_wait_for_one(listening):
    server = listening(handshakes=1, timeout=0.2)
    with server.connect(), server.negotiate():  # the first says nothing and runs out of time
        assert server.called.wait(20)


def test_stop_breaks_off_handshakes_and_leaves_adopted_connections(listening):
    server = listening(timeout=60)
    with server.negotiate(), server.connect() as idle:
        assert server.called.wait(20)
        assert idle.recv(18)
        server.server.stop()
        assert idle.recv(1) == b""
        server.adopted[0][0].sendall(b"still there")


def test_an_adopt_that_fails_closes_the_connection(listening):
    server = listening()

    def refuse(descriptor, negotiated):
        raise OSError("full")

    server.server._adopt = refuse
    with server.negotiate() as client, contextlib.suppress(ConnectionResetError):
        while client.recv(100):
            pass
