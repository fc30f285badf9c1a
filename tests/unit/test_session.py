"""The coordinator against a scripted storage subsystem: what it believes, and what it lets go of."""

import os
import socket
import threading

import pytest

from timezero import session
from timezero.control import ControlError
from timezero.control.server import Answer, RequestError, Server
from timezero.errors import DeadlineError, LockedError, PunctureError, TimezeroError, UsageError

TIMES = {"close_ns": 1, "drain_ns": 2, "install_ns": 3, "open_ns": 4, "total_ns": 10}


class Script:
    """A handler whose answers a test sets; it records the requests."""

    def __init__(self):
        self.requests = []
        self.closed = threading.Event()
        self.files = [os.memfd_create(name) for name in ("owned", "shared", "drain", "volume")]
        self.states = ["ended"]
        self.overrides = {}

    def part(self, volume, first=0):
        handles = {
            "owned_fd": first,
            "shared_fd": first + 1,
            "drain_fd": first + 2,
            "volume_fd": first + 3,
            "file_fd": -1,
        }
        return {"volume": volume, "size": 4096, "handles": handles, "owned_bytes": 10, "shared_bytes": 20}

    def handle(self, op, request):
        self.requests.append(request)
        if op in self.overrides:
            return self.overrides[op](request)
        match op:
            case "hello":
                return Answer({"version": 1, "engine": "uring"})
            case "status":
                return Answer({"volumes": [], "sessions": []})
            case "prepare":
                parts = [self.part(volume, 4 * number) for number, volume in enumerate(request["volumes"])]
                return Answer({"parts": parts}, tuple(self.files * len(parts)))
            case "suspend":
                return Answer({"times": TIMES})
            case "report" | "end":
                state = "punctured" if request.get("cancel") else "ended"
                states = self.states if state == "ended" else [state]
                return Answer({"parts": [{"volume": "a", "state": word, "puncture": "cap"} for word in states]})

    def close(self):
        self.closed.set()


@pytest.fixture
def script(tmp_path):
    script = Script()
    script.path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(script.path)
        listener.listen()
        script.server = Server(listener, lambda peer: script, log=print)
        script.server.start()
        yield script
        script.server.stop(20)
    for file in script.files:
        os.close(file)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def ops(script):
    return [request["op"] for request in script.requests]


def test_from_prepare_to_end(script):
    before = open_files()
    with session.prepare(script.path, ["a"], track_size=4096, memory_bytes=1 << 20) as group:
        [part] = group.parts
        assert (part.volume, part.size) == ("a", 4096)
        for key, file in zip(("owned_fd", "shared_fd", "drain_fd", "volume_fd"), script.files, strict=True):
            assert os.fstat(part.handles[key]).st_ino == os.fstat(file).st_ino
        assert (part.handles["file_fd"], part.handles["owned_bytes"], part.handles["shared_bytes"]) == (-1, 10, 20)
        assert group.suspend(5000) == TIMES
        assert group.report()[0]["state"] == "ended"
        assert group.end()[0]["state"] == "ended"
    assert script.closed.wait(20)
    assert ops(script) == ["hello", "prepare", "suspend", "report", "end"]  # and no cancel
    prepare, suspend = script.requests[1], script.requests[2]
    assert (prepare["track_size"], prepare["memory_bytes"]) == (4096, 1 << 20)
    assert "file_bytes" not in prepare
    assert (suspend["deadline_us"], suspend["session"]) == (5000, prepare["session"])
    assert open_files() <= before + 1  # the server's end may take a moment longer


def test_each_part_gets_its_own_descriptors(script):
    with session.prepare(script.path, ["a", "b"]) as group:
        numbers = [
            group.parts[n].handles[key] for n in (0, 1) for key in ("owned_fd", "shared_fd", "drain_fd", "volume_fd")
        ]
        assert len(set(numbers)) == 8
        assert [part.volume for part in group.parts] == ["a", "b"]


def with_domain(script):
    part = script.part("a")
    part["handles"]["domain_fd"] = 4
    return Answer({"parts": [part]}, (*script.files, script.files[0]))


def test_a_domain_is_asked_for_and_set(script):
    script.overrides["prepare"] = lambda request: with_domain(script)
    script.overrides["domain"] = lambda request: Answer({})
    with session.prepare(script.path, ["a"], domain=["a"]) as group:
        assert os.fstat(group.parts[0].domain_fd).st_ino == os.fstat(script.files[0]).st_ino
        group.set_domain("a")
    assert script.requests[1]["domain"] == ["a"]
    assert script.requests[2] == {**script.requests[2], "op": "domain", "session": group.name, "volume": "a"}
    assert group.parts[0].domain_fd == -1


def test_no_domain_is_asked_for_by_default(script):
    with session.prepare(script.path, ["a"]) as group:
        assert group.parts[0].domain_fd == -1
    assert "domain" not in script.requests[1]


@pytest.mark.parametrize("domain", [[], ["a"]])
def test_a_domain_that_does_not_fit_what_was_asked_for(script, domain):
    """An older server passes the wish over: then files must not be taken for a whole volume, nor the other way."""
    before = open_files()
    if not domain:
        script.overrides["prepare"] = lambda request: with_domain(script)
    with pytest.raises(ControlError, match="domain"):
        session.prepare(script.path, ["a"], domain=domain)
    assert script.closed.wait(20)
    assert open_files() <= before + 1


def test_leaving_early_cancels(script):
    with pytest.raises(KeyboardInterrupt), session.prepare(script.path, ["a"]) as group:
        group.suspend()
        raise KeyboardInterrupt
    assert script.requests[-1]["cancel"] is True
    assert script.closed.wait(20)
    assert not group.parts[0].handles


@pytest.mark.parametrize(
    "states", [["punctured"], ["active"], ["prepared"], ["ended", "punctured"], [], ["ended", "ended"]]
)
def test_only_ended_of_every_part_is_intact(script, states):
    script.states = states
    with session.prepare(script.path, ["a"]) as group:
        group.suspend()
        with pytest.raises(PunctureError) as error:
            group.end()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("volumes", [[], ["b"], ["a", "a"]])
def test_a_report_is_of_the_volumes_asked_for(script, volumes):
    parts = [{"volume": volume, "state": "active", "puncture": "none"} for volume in volumes]
    script.overrides["report"] = lambda request: Answer({"parts": parts})
    with session.prepare(script.path, ["a"]) as group, pytest.raises(TimezeroError, match="does not fit"):
        group.report()


def test_a_connection_that_breaks_after_t0_is_a_lost_t0(script):
    with session.prepare(script.path, ["a"]) as group:
        group.suspend()
        script.server.stop(20)
        with pytest.raises(PunctureError):
            group.report()
        with pytest.raises(PunctureError):
            group.end()


@pytest.mark.parametrize(("code", "kind"), [("deadline", DeadlineError), ("busy", LockedError)])
def test_a_suspension_that_fails(script, code, kind):
    def refuse(request):
        raise RequestError(code, "no")

    script.overrides["suspend"] = refuse
    with session.prepare(script.path, ["a"]) as group, pytest.raises(kind):
        group.suspend(1)
    assert script.requests[-1]["cancel"] is True


def spoiled(**changes):
    def prepare(script):
        part = script.part("a")
        part["handles"] |= changes.pop("handles", {})
        part |= changes
        return Answer({"parts": [part]}, tuple(script.files))

    return prepare


@pytest.mark.parametrize(
    "answer",
    [
        spoiled(volume="b"),
        spoiled(size="x"),
        spoiled(handles={"owned_fd": 9}),
        spoiled(handles={"owned_fd": 1}),  # used twice
        spoiled(handles={"volume_fd": None}),
        spoiled(handles={"volume_fd": -1}),  # one is left over
        lambda script: Answer({}, tuple(script.files)),
        lambda script: Answer({"parts": []}, tuple(script.files)),
    ],
)
def test_an_answer_to_prepare_that_makes_no_sense_leaves_nothing_open(script, answer):
    script.overrides["prepare"] = lambda request: answer(script)
    before = open_files()
    with pytest.raises(TimezeroError):
        session.prepare(script.path, ["a"])
    assert script.closed.wait(20)
    assert open_files() <= before + 1


@pytest.mark.parametrize("names", [[], "disk"])
def test_a_session_needs_names(script, names):
    with pytest.raises(UsageError):
        session.prepare(script.path, names)
    assert script.requests == []


def test_status_and_its_default_place(script, monkeypatch):
    assert session.status(script.path) == {"volumes": [], "sessions": []}
    monkeypatch.setenv("TIMEZERO_CONTROL", script.path)
    assert session.default_control() == script.path
    assert session.status()["volumes"] == []
