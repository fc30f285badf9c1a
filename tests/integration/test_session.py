"""Sessions over a real `timezero serve`, while applications write: T0, ownership, limits, and whoever goes away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proof import load
from tests.watching import TIMEOUT, sessions, until, volume
from timezero import session
from timezero.control import Client, ControlError
from timezero.errors import DeadlineError, LockedError, PunctureError, UsageError

MIB = 1 << 20
SIZE = 8 * MIB
DEADLINE_US = 20_000_000  # of suspensions that are to succeed, however busy the machine
SHORT_US = 3_000_000  # enough to close and to drain on a busy disk, and to be slept over


@pytest.fixture(scope="module")
def blockload(tmp_path_factory):
    return load.build(tmp_path_factory.mktemp("blockload"))


@pytest.fixture
def images(tmp_path):
    paths = {name: tmp_path / f"{name}.img" for name in ("db", "log")}
    for path in paths.values():
        path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    return paths


@pytest.fixture
def write(blockload, tmp_path):
    """write(server, name) starts writers at depth; `stop` of what it returns raises when any write failed."""
    running = []

    def start(server, *names, **options):
        for number, name in enumerate(names):
            running.append(
                load.Load(
                    blockload, Path(server.nbd_socket), name, number, SIZE, tmp_path, seconds=120,
                    options={"min": 512, "max": 32768, "grain": 512, "trim": 2, "zero": 2, **options},
                ).start()
            )  # fmt: skip
        return running

    yield start
    for item in running:
        item.kill()


def writes_go_on(server, name="db"):
    before = volume(server, name)["writes"]
    until(lambda: volume(server, name)["writes"] > before + 10, "writes do not go on")


@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_a_group_reaches_t0_under_load(serve, images, write, engine):
    server = serve(images, engine=engine, reactors=2)
    loads = write(server, "db", "log")
    with session.prepare(server.control, ["log", "db"], track_size=65536, memory_bytes=16 * MIB) as group:
        assert [part.volume for part in group.parts] == ["log", "db"]
        assert {report["state"] for report in sessions(server)} == {"prepared"}
        times = group.suspend(DEADLINE_US)
        assert 0 < times["total_ns"] < DEADLINE_US * 1000
        assert set(times) == {"close_ns", "drain_ns", "install_ns", "open_ns", "total_ns"}
        until(lambda: all(report["intercepted"] for report in group.report()), "nothing was intercepted")
        for part in group.parts:
            assert part.size == SIZE
            assert os.fstat(part.handles["owned_fd"]).st_size == part.handles["owned_bytes"]
            assert os.fstat(part.handles["shared_fd"]).st_size == part.handles["shared_bytes"]
            assert len(os.pread(part.handles["volume_fd"], 10, 0) if not direct(part) else b"x" * 10) == 10
        reports = group.end()
        assert {report["state"] for report in reports} == {"ended"}
    assert sessions(server) == []
    for item in loads:
        item.stop()
    assert "T0 of log, db" in server.stderr()
    assert "ended intact" in server.stderr()


def direct(part):
    with open(f"/proc/self/fdinfo/{part.handles['volume_fd']}") as info:
        flags = next(line.split()[1] for line in info if line.startswith("flags:"))
    return int(flags, 8) & os.O_DIRECT


def test_the_file_tier_comes_along_and_is_used(serve, images, write, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    server = serve(images, sidefile_path=spill, sidefile_file="16M", sidefile_memory="1M", track="4K")
    with session.prepare(server.control, ["db"]) as group:
        assert group.parts[0].handles["file_fd"] >= 0
        group.suspend(DEADLINE_US)
        write(server, "db")
        until(lambda: group.report()[0]["file_images"], "the file tier is not used")
        [report] = group.end()
        assert report["track_size"] == 4096
    assert list(spill.iterdir()) == []


def test_two_sessions_at_once_on_one_volume(serve, images, write):
    server = serve(images)
    write(server, "db")
    with session.prepare(server.control, ["db"]) as first, session.prepare(server.control, ["db", "log"]) as second:
        first.suspend(DEADLINE_US)
        second.suspend(DEADLINE_US)
        assert volume(server)["sessions"] == 2
        first.end()
        assert volume(server)["sessions"] == 1
        assert {report["state"] for report in second.end()} == {"ended"}


CLIENT = """
import sys, time
from timezero import session
with session.prepare(sys.argv[1], ["db"]) as group:
    group.suspend(20_000_000)
    print("T0", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_mover_that_dies_takes_its_session_with_it(serve, images, write, sign):
    server = serve(images)
    loads = write(server, "db")
    mover = subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.control], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert mover.stdout.readline() == "T0\n"
        assert volume(server)["sessions"] == 1
        mover.send_signal(sign)
        mover.wait(TIMEOUT)
        until(lambda: not sessions(server), "the session stayed")
        assert volume(server)["sessions"] == 0
    finally:
        mover.kill()
        mover.communicate(timeout=TIMEOUT)
    writes_go_on(server)
    loads[0].stop()  # raises when a write failed
    with session.prepare(server.control, ["db"]) as group:  # and the next backup is welcome
        group.suspend(DEADLINE_US)
        group.end()


# ---- suspension in steps, as for groups over several subsystems ----


@pytest.fixture
def stepping(serve, images):
    """A server, and a connection with a session prepared on db."""
    server = serve(images)
    with Client(server.control) as client:
        descriptors = client.call_for_descriptors("prepare", session="steps", volumes=["db"])[1]
        for descriptor in descriptors:
            os.close(descriptor)
        yield server, client


def close_gates(client, deadline_us=DEADLINE_US):
    client.call("close", session="steps", deadline_us=deadline_us)


def test_close_install_open(stepping, write):
    server, client = stepping
    loads = write(server, "db")
    close_gates(client)
    until(lambda: volume(server)["held"] > 0, "a closed gate holds updates")
    client.call("install", session="steps")
    times = client.call("open", session="steps")["times"]
    assert times["total_ns"] > 0
    writes_go_on(server)
    [part] = client.call("end", session="steps", cancel=False)["parts"]
    assert part["state"] == "ended"
    loads[0].stop()


def test_one_suspension_at_a_time(stepping):
    server, client = stepping
    close_gates(client)
    with session.prepare(server.control, ["log"]) as other, Client(server.control) as third:
        with pytest.raises(LockedError):
            other.suspend(DEADLINE_US)
        with pytest.raises(ControlError):
            third.call("abort", session="steps")  # somebody else's
        client.call("abort", session="steps")
        assert other.suspend(DEADLINE_US)
        other.end()


def test_an_abort_opens_the_gates_and_leaves_no_t0(stepping, write):
    server, client = stepping
    loads = write(server, "db")
    close_gates(client)
    client.call("install", session="steps")
    client.call("abort", session="steps")
    writes_go_on(server)
    [part] = client.call("end", session="steps", cancel=False)["parts"]
    assert part["state"] == "punctured"
    loads[0].stop()


def test_a_connection_that_goes_with_gates_closed_opens_them(stepping, write):
    server, client = stepping
    loads = write(server, "db")
    close_gates(client, 60_000_000)
    client.close()
    until(lambda: not sessions(server), "the session stayed")
    writes_go_on(server)
    loads[0].stop()
    with session.prepare(server.control, ["db"]) as group:  # nobody owns the suspension any more
        group.suspend(DEADLINE_US)
        group.end()


def test_a_deadline_that_passed_fails_and_the_application_runs_on(stepping, write):
    server, client = stepping
    loads = write(server, "db")
    close_gates(client, SHORT_US)
    writes_go_on(server)  # the gate opened by itself
    with pytest.raises(DeadlineError):
        client.call("install", session="steps")
    with pytest.raises(UsageError):
        client.call("open", session="steps")  # there is no suspension any more
    [part] = client.call("end", session="steps", cancel=False)["parts"]
    assert part["state"] != "ended"
    loads[0].stop()


def test_an_owner_that_sleeps_over_its_deadline_blocks_nobody(stepping):
    server, client = stepping
    close_gates(client, SHORT_US)
    with session.prepare(server.control, ["db", "log"]) as other:

        def suspended():
            try:
                return other.suspend(DEADLINE_US)
            except LockedError:
                return None

        until(suspended, "the turn does not end")
        with pytest.raises(DeadlineError):
            client.call("install", session="steps")
        assert {report["state"] for report in other.end()} == {"ended"}


def test_a_deadline_of_one_go(serve, images):
    """Under the thread engine a suspension takes longer than the microsecond it is given, or else it succeeds."""
    server = serve(images, engine="threads", reactors=2)
    outcomes = set()
    for _ in range(20):
        with session.prepare(server.control, ["db", "log"], memory_bytes=MIB) as group:
            try:
                group.suspend(1)
                assert {report["state"] for report in group.end()} == {"ended"}
                outcomes.add("T0")
            except DeadlineError:
                with pytest.raises(PunctureError):
                    group.end()
                outcomes.add("deadline")
    assert "deadline" in outcomes


def test_steps_out_of_order_are_refused(stepping):
    _, client = stepping
    for op in ("install", "open", "abort"):
        with pytest.raises(UsageError):
            client.call(op, session="steps")
    close_gates(client)
    with pytest.raises(ControlError):
        close_gates(client)
    client.call("install", session="steps")
    client.call("open", session="steps")
    with pytest.raises(UsageError, match="T0 already"):
        client.call("suspend", session="steps", deadline_us=DEADLINE_US)


def test_the_server_ends_with_gates_closed_and_writers_held(stepping, write):
    server, client = stepping
    write(server, "db")
    close_gates(client, 60_000_000)
    until(lambda: volume(server)["held"] > 0, "a closed gate holds updates")
    assert server.stop() == 0


# ---- limits and refusals ----


def test_requests_that_make_no_sense(stepping):
    server, client = stepping
    good = {"session": "x", "volumes": ["db"]}
    for code, fields in [
        ("unknown-volume", {**good, "volumes": ["nobody"]}),
        ("bad-request", {**good, "volumes": []}),
        ("bad-request", {**good, "volumes": "db"}),
        ("bad-request", {**good, "volumes": ["db", "db"]}),
        ("bad-request", {**good, "volumes": [1]}),
        ("limit", {**good, "volumes": [str(number) for number in range(60)]}),
        ("bad-request", {"volumes": ["db"]}),
        ("bad-request", {**good, "session": "a b"}),
        ("bad-request", {**good, "session": "x" * 200}),
        ("bad-request", {**good, "session": "steps"}),  # exists
        ("bad-request", {**good, "track_size": 5000}),
        ("bad-request", {**good, "track_size": "64K"}),
        ("bad-request", {**good, "track_size": 1 << 60}),
        ("bad-request", {**good, "memory_bytes": -1}),
        ("bad-request", {**good, "memory_bytes": 2048}),  # not even a track
        ("limit", {**good, "memory_bytes": 4096 * 2}),
        ("limit", {**good, "memory_bytes": 1 << 40}),
        ("bad-request", {**good, "file_bytes": MIB}),  # no directory
    ]:
        with pytest.raises(ControlError) as error:
            client.call("prepare", **fields)
        assert (error.value.code, fields) == (code, fields)
    for op, fields in [
        ("suspend", {"session": "steps"}), ("suspend", {"session": "steps", "deadline_us": 0}),
        ("suspend", {"session": "steps", "deadline_us": 1 << 40}), ("end", {"session": "steps", "cancel": 1}),
        ("hello", {}), ("hello", {"version": "1"}),
    ]:  # fmt: skip
        with pytest.raises(ControlError) as error:
            client.call(op, **fields)
        assert error.value.code == "bad-request"
    assert [report["session"] for report in sessions(server)] == ["steps"]
    with pytest.raises(ControlError) as error:
        client.call("hello", version=99)
    assert error.value.code == "version"


def test_a_session_belongs_to_its_connection(stepping):
    server, _ = stepping
    with Client(server.control) as stranger:
        for op in ("report", "end", "suspend"):
            with pytest.raises(ControlError) as error:
                stranger.call(op, session="steps", deadline_us=1000)
            assert error.value.code == "unknown-session"
    assert [report["session"] for report in sessions(server)] == ["steps"]


def test_admission(serve, images, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    config = tmp_path / "timezero.toml"
    config.write_text('[limits]\nsessions = 2\nmemory = "10M"\nfile = "3M"\n')
    server = serve(images, config=config, sidefile_memory="2M", sidefile_path=spill, sidefile_file="1M")
    with session.prepare(server.control, ["db"]), session.prepare(server.control, ["db"]):
        with pytest.raises(ControlError, match="2 sessions"):
            session.prepare(server.control, ["log", "db"])
        with pytest.raises(ControlError, match=r"limits\.memory"):
            session.prepare(server.control, ["log"], memory_bytes=7 * MIB)
        with pytest.raises(ControlError, match=r"limits\.file"):
            session.prepare(server.control, ["log"], file_bytes=2 * MIB)
        assert len(sessions(server)) == 2
        session.prepare(server.control, ["log"]).close()
    until(lambda: not sessions(server), "sessions stayed")
    with session.prepare(server.control, ["log", "db"], memory_bytes=5 * MIB):
        pass  # what was given back is there again


def test_a_sidefile_at_its_cap_punctures_the_session_and_no_write_fails(serve, images, write):
    server = serve(images)
    with session.prepare(server.control, ["db", "log"], memory_bytes=MIB) as group:
        group.suspend(DEADLINE_US)
        loads = write(server, "db")
        until(lambda: group.report()[0]["state"] == "punctured", "no puncture")
        writes_go_on(server)
        with pytest.raises(PunctureError, match=r"db \(cap\)"):
            group.end()
    loads[0].stop()
    until(lambda: "punctured (cap)" in server.stderr(), "the log says nothing")
