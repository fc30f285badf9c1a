"""Peers that say anything: the NBD handshake, both ends of the control protocol."""

from __future__ import annotations

import atexit
import functools
import json
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.base import Input, Target, nothing_left_open
from timezero.config import Limits, ServeConfig, SidefileConfig, VolumeConfig
from timezero.control import client
from timezero.errors import TimezeroError
from timezero.jobs.options import SessionOptions
from timezero.jobs.serving import Served
from timezero.nbd.constants import Option
from timezero.nbd.handshake import Export, Handshake, HandshakeError
from timezero.subsystem.server import Subsystem

_TIMEOUT = 5.0  # seconds; every peer here has said all it has to say before

# ---- the handshake, as a server ----

_DISK = Export("disk", 1 << 20, 0b1111_1110_1101, 65536, "a disk")


class _Exports:
    def names(self) -> list[str]:
        return ["disk", "\u00fc\n"]

    def find(self, name: str) -> Export | None:
        return _DISK if name == "disk" else None


def handshake(data: bytes) -> None:
    """It agrees, or raises HandshakeError, and reads nothing past the handshake."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        reader = threading.Thread(target=_read_all, args=(theirs,))
        reader.start()
        try:
            agreed = Handshake(ours, _Exports(), _TIMEOUT).run()
            if agreed is not None:
                assert agreed.export is _DISK
                left = ours.recv(len(data) + 1)
                assert data.endswith(left)
        except HandshakeError:
            pass
        finally:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            reader.join(_TIMEOUT)


def _read_all(sock: socket.socket) -> bytes:
    data = b""
    with suppress(OSError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


def _option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def _text(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def handshake_seeds() -> Mapping[str, bytes]:
    """Good clients."""
    flags, go = struct.pack(">I", 3), _text(b"disk") + struct.pack(">HHHH", 3, 1, 2, 3)
    contexts = _text(b"disk") + struct.pack(">I", 1) + _text(b"base:allocation")
    return {
        "go": flags + _option(Option.STRUCTURED_REPLY) + _option(Option.GO, go) + b"next",
        "info": flags + _option(Option.INFO, go) + _option(Option.LIST) + _option(Option.ABORT),
        "contexts": flags
        + _option(Option.STRUCTURED_REPLY)
        + _option(Option.LIST_META_CONTEXT, contexts)
        + _option(Option.SET_META_CONTEXT, contexts)
        + _option(Option.GO, go),
        "name": struct.pack(">I", 1) + _option(Option.EXPORT_NAME, b"disk") + b"next",
        "old": struct.pack(">I", 0) + _option(Option.LIST),
        "tls": flags + _option(Option.STARTTLS) + _option(99, b"x" * 20) + _option(Option.GO, _text(b"none") + b"\0\0"),
    }


# ---- the control protocol, as a server ----


class _Server:
    """A storage subsystem with one small volume, for all inputs; its log."""

    def __init__(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="timezero-fuzz-")
        root = Path(directory.name)
        (root / "volume").write_bytes(bytes(1 << 20))
        (root / "tiers").mkdir()
        self.log: list[str] = []
        self.control = str(root / "control")
        self.subsystem = Subsystem(
            ServeConfig(
                volumes={"v": VolumeConfig(str(root / "volume"))},
                nbd=(f"nbd+unix:///?socket={root}/nbd",),
                control=self.control,
                sidefile=SidefileConfig(memory=1 << 20, path=str(root / "tiers"), file=1 << 16),
                limits=Limits(memory=8 << 20, file=1 << 20),
                engine="threads",
            ),
            self.log.append,
        )
        atexit.register(directory.cleanup)
        atexit.register(self.subsystem.stop)


@functools.cache
def _server() -> _Server:
    return _Server()


def control_server(data: bytes) -> None:
    """Every answer is an object with `ok`, none says "internal", and nothing of the connection stays behind."""
    server = _server()
    server.log.clear()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_TIMEOUT)
        sock.connect(server.control)
        sender = threading.Thread(target=_send, args=(sock, data))
        sender.start()
        answers = _read_answers(sock)
        sender.join(_TIMEOUT)
    for line in answers.splitlines():
        answer = json.loads(line)
        assert type(answer["ok"]) is bool
        assert answer["ok"] or answer["error"]["code"] not in ("internal", "io"), answer
    assert not [line for line in server.log if "internal" in line], server.log
    with client.Client(server.control) as other:  # the handler is closed before the connection that we saw end
        assert other.call("status")["sessions"] == []


def _send(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def _read_answers(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


def _lines(*requests: Mapping[str, Any]) -> bytes:
    return b"".join(json.dumps({"id": n, **fields}).encode() + b"\n" for n, fields in enumerate(requests))


def control_server_seeds() -> Mapping[str, bytes]:
    """Good clients, one that leaves in the middle of a suspension."""
    prepare = {"op": "prepare", "session": "s", "volumes": ["v"], "memory_bytes": 1 << 19}
    steps = [{"op": op, "session": "s", "deadline_us": 100000} for op in ("close", "install", "open")]
    end = {"op": "end", "session": "s", "cancel": False}
    return {
        "hello": _lines({"op": "hello", "version": 1, "client": "x"}, {"op": "status"}),
        "version": _lines({"op": "hello", "version": 2}),
        "session": _lines(
            prepare,
            {"op": "suspend", "session": "s", "deadline_us": 1000000},
            {"op": "report", "session": "s"},
            end,
        ),
        "steps": _lines({**prepare, "track_size": 4096, "file_bytes": 65536}, *steps, end),
        "gone": _lines(prepare, steps[0]),
        "domain": _lines({**prepare, "domain": ["v"]}, {"op": "domain", "session": "s", "volume": "v"}, *steps),
        "abort": _lines(prepare, steps[0], {"op": "abort", "session": "s"}, steps[1], {**end, "cancel": True}),
    }


# ---- the control protocol, as a client ----

_BREAK = b"\0"  # between what is answered on one connection and on the next


def control_client(data: bytes) -> None:
    """A job's whole talk with a subsystem that answers anything: TimezeroError, or nothing, and no descriptor left."""
    answers = data.split(_BREAK)
    with nothing_left_open(), ExitStack() as peers:
        peers.enter_context(mock.patch.object(client, "_connect", lambda path, timeout: _answered(answers, peers)))
        try:
            with Served(["v"], SessionOptions(control="/nowhere")) as served:
                served.size("v")
                served.track_size_of("v")
                served.suspend()
                served.look()
                served.end()
                assert all(type(value) is int for value in served.suspension.values())
        except TimezeroError:
            pass


def _answered(answers: list[bytes], peers: ExitStack) -> socket.socket:
    """A connection on which the next answers are there already, the second with as many descriptors as the first byte
    says. What is asked on it goes nowhere, and fits into the socket.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    peers.enter_context(theirs)
    answer = Input(answers.pop(0) if answers else b"")
    files = [os.memfd_create("fuzz") for _ in range(answer.byte() & 7)]
    content = answer.rest()
    first = content.find(b"\n") + 1
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    with suppress(BlockingIOError):
        theirs.sendall(content[:first])
        if content[first:]:
            socket.send_fds(theirs, [content[first:]], files)
    theirs.shutdown(socket.SHUT_WR)
    for file in files:
        os.close(file)
    return ours


def control_client_seeds() -> Mapping[str, bytes]:
    """A good server: status, status again to find the volume, then the session."""
    volume = {"name": "v", "path": "/dev/null", "size": 1 << 20}
    hello = {"id": 1, "ok": True, "version": 1}
    status = {"id": 2, "ok": True, "volumes": [volume], "sessions": []}
    handles = {"owned_fd": 0, "shared_fd": 1, "drain_fd": 2, "volume_fd": 3, "file_fd": -1, "domain_fd": -1}
    part = {"volume": "v", "size": 1 << 20, "handles": handles, "owned_bytes": 4096, "shared_bytes": 4096}
    report = {"volume": "v", "state": "active", "puncture": "none", "track_size": 4096,
              "slots": 2, "low_mark": 1, "used_slots": 1}  # fmt: skip
    times = dict.fromkeys(("close_ns", "drain_ns", "install_ns", "open_ns", "total_ns"), 1)
    session = [
        {"id": 2, "ok": True, "parts": [part], "fds": 4},
        {"id": 3, "ok": True, "parts": [report]},
        {"id": 4, "ok": True, "times": times},
        {"id": 5, "ok": True, "parts": [report]},
        {"id": 6, "ok": True, "parts": [{**report, "state": "ended"}]},
    ]
    refused = {"id": None, "ok": False, "error": {"code": "limit", "message": "no"}}

    def connection(descriptors: int, *replies: Mapping[str, Any]) -> bytes:
        return bytes([descriptors]) + b"".join(json.dumps(reply).encode() + b"\n" for reply in replies)

    asked = connection(8, hello, status)
    ended = [*session[:-1], {**session[-1], "parts": [{**report, "state": "punctured"}]}]
    return {
        "good": _BREAK.join((asked, asked, connection(4, hello, *session))),
        "punctured": _BREAK.join((asked, asked, connection(4, hello, *ended))),
        "refused": _BREAK.join((asked, asked, connection(8, hello, refused))),
        "gone": _BREAK.join((asked, asked, connection(4, hello, *session[:3]))),
    }


TARGETS = (
    Target("handshake", handshake, handshake_seeds),
    Target("control-server", control_server, control_server_seeds),
    Target("control-client", control_client, control_client_seeds),
)
