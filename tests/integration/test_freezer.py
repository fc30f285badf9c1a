"""The watchdog thaws whatever happens: real file systems, and everybody killed who is there to be killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from proof.stack import mounted_export
from tests.integration.filesystems import KINDS, MIB, FileSystem, file_system, is_frozen, run
from timezero import _linux
from timezero.concordance import freezer
from timezero.concordance.freezer import Freezer, WatchdogLostError
from timezero.errors import DeadlineError, TimezeroError, UsageError


@pytest.fixture(scope="module")
def both(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FileSystem]]:
    """An ext4 and an xfs."""
    folder = tmp_path_factory.mktemp("freezer")
    with ExitStack() as stack:
        yield [stack.enter_context(file_system(kind, folder)) for kind in KINDS]


@pytest.fixture
def points(both: list[FileSystem]) -> Iterator[list[Path]]:
    points = [system.point for system in both]
    yield points
    left = [point for point in points if is_frozen(point)]
    for point in left:
        descriptor = os.open(point, os.O_RDONLY)
        _linux.thaw(descriptor)
        os.close(descriptor)
    assert not left, "a test left file systems frozen"


def wait_until(what: Callable[[], bool], seconds: float) -> float:
    """How long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it took too long"
        time.sleep(0.002)
    return time.monotonic() - began


def thawed(points: list[Path]) -> Callable[[], bool]:
    return lambda: not any(is_frozen(point) for point in points)


def test_writers_wait_from_freeze_to_thaw(points: list[Path]) -> None:
    with Freezer(points) as both:
        both.sync()
        times = both.freeze(30)
        assert list(times) == [str(point) for point in points]
        assert all(0 < us < 30_000_000 for us in times.values())
        writers = [threading.Thread(target=(point / "held").write_bytes, args=(b"held",)) for point in points]
        for writer in writers:
            writer.start()
        time.sleep(0.2)
        assert all(writer.is_alive() for writer in writers)
        assert set(both.thaw()) == {str(point) for point in points}
        for writer in writers:
            writer.join(10)
    assert all((point / "held").read_bytes() == b"held" for point in points)


def test_leaving_thaws(points: list[Path]) -> None:
    with pytest.raises(KeyboardInterrupt), Freezer(points) as both:
        both.freeze(30)
        assert all(map(is_frozen, points))
        raise KeyboardInterrupt
    assert not any(map(is_frozen, points))


def test_leaving_thaws_though_others_hold_the_socket(points: list[Path]) -> None:
    with Freezer(points) as both:
        copy = os.dup(both._socket.fileno())  # as in a process that was forked
        both.freeze(30)
    try:
        assert not any(map(is_frozen, points))
    finally:
        os.close(copy)


def test_one_freeze_each(points: list[Path]) -> None:
    with Freezer(points) as both:
        with pytest.raises(ValueError, match="freezes once"):
            both.thaw()
        both.freeze(30)
        with pytest.raises(ValueError, match="freezes once"):
            both.freeze(30)
        both.thaw()
        with pytest.raises(ValueError, match="freezes once"):
            both.thaw()
    with pytest.raises(ValueError, match="closed"):
        both.freeze(30)


def test_deadline_thaws_and_there_is_no_t0(points: list[Path]) -> None:
    with Freezer(points) as both:
        both.freeze(0.3)
        assert all(map(is_frozen, points))
        took = wait_until(thawed(points), 5)
        assert took < 1
        with pytest.raises(DeadlineError, match="no T0"):
            both.thaw()


def test_one_that_is_frozen_already_is_refused_and_the_others_are_thawed(points: list[Path]) -> None:
    descriptor = os.open(points[1], os.O_RDONLY)
    _linux.freeze(descriptor)
    try:
        with Freezer(points) as both:
            with pytest.raises(TimezeroError, match="frozen already"):
                both.freeze(30)
            assert not is_frozen(points[0])
        assert is_frozen(points[1]), "what somebody else froze is not ours to thaw"
    finally:
        _linux.thaw(descriptor)
        os.close(descriptor)


def test_thawed_by_somebody_else_is_no_t0(points: list[Path]) -> None:
    with Freezer(points) as both:
        both.freeze(30)
        descriptor = os.open(points[0], os.O_RDONLY)
        _linux.thaw(descriptor)
        os.close(descriptor)
        with pytest.raises(TimezeroError, match="somebody else"):
            both.thaw()
        assert not any(map(is_frozen, points))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_watchdog_thaws(points: list[Path], sign: signal.Signals) -> None:
    with Freezer(points) as both:
        both.freeze(30)
        assert both._process is not None
        os.kill(both._process, sign)
        wait_until(thawed(points), 5)
        with pytest.raises(WatchdogLostError, match="every file system is thawed"):
            both.thaw()


def test_a_killed_watchdog_is_noticed_and_its_work_done(points: list[Path]) -> None:
    with Freezer(points) as both:
        both.freeze(30)
        assert both._process is not None
        os.kill(both._process, signal.SIGKILL)
        time.sleep(0.1)
        assert all(map(is_frozen, points))
        with pytest.raises(WatchdogLostError, match="every file system is thawed"):
            both.thaw()
        assert not any(map(is_frozen, points))


def test_what_a_killed_watchdog_had_turned_on_is_turned_off(points: list[Path]) -> None:
    """Expedited grace periods, while it freezes: killed there, it leaves them on for the whole machine."""
    expedited = Path("/sys/kernel/rcu_expedited")
    assert expedited.read_text().strip() == "0"
    with Freezer(points) as both:
        both.freeze(30)
        assert both._process is not None
        os.kill(both._process, signal.SIGKILL)
        expedited.write_text("1")
        try:
            with pytest.raises(WatchdogLostError):
                both.thaw()
            assert expedited.read_text().strip() == "0"
        finally:
            expedited.write_text("0")


def test_a_killed_watchdog_is_noticed_by_close(points: list[Path]) -> None:
    with Freezer(points) as both:
        both.freeze(30)
        assert both._process is not None
        os.kill(both._process, signal.SIGKILL)
    assert not any(map(is_frozen, points))


def test_a_stopped_watchdog_is_not_waited_for(points: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "_PATIENCE", 0.5)
    with Freezer(points) as both:
        both.freeze(30)
        assert both._process is not None
        os.kill(both._process, signal.SIGSTOP)
        with pytest.raises(WatchdogLostError):
            both.thaw()
        assert not any(map(is_frozen, points))


def test_watchdog_is_gone_afterwards(points: list[Path]) -> None:
    with Freezer(points) as both:
        pid = both._process
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    both.close()


def test_watchdog_is_locked_in_memory_and_of_its_own(points: list[Path]) -> None:
    with Freezer(points) as both:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{both._process}/status").read_text().splitlines())
        assert int(status["VmLck"].split()[0]) > 0
        assert int(status["VmRSS"].split()[0]) < 20_000
        assert both._process is not None and os.getsid(both._process) == both._process
        descriptors = [os.readlink(f"/proc/{both._process}/fd/{fd}") for fd in range(3)]
        assert descriptors == [os.devnull] * 3


@pytest.mark.parametrize("before", ["0", "1"])
def test_rcu_is_left_as_it_was(points: list[Path], before: str) -> None:
    setting = Path("/sys/kernel/rcu_expedited")
    was = setting.read_text()
    setting.write_text(before)
    try:
        with Freezer(points) as both:
            both.freeze(30)
            assert setting.read_text().strip() == before
            both.thaw()
        assert setting.read_text().strip() == before
    finally:
        setting.write_text(was)


def test_several_paths_on_one_file_system_are_one(points: list[Path]) -> None:
    (points[0] / "directory").mkdir(exist_ok=True)
    with Freezer([points[0], points[0] / "directory", points[1]]) as both:
        assert both.points == [str(points[0]), str(points[1])]
        both.freeze(30)
        both.thaw()


def test_a_path_that_is_not_there(points: list[Path]) -> None:
    with pytest.raises(UsageError, match="cannot be frozen"):
        Freezer([points[0], points[0] / "nothing"])


def test_a_file_system_that_cannot_be_frozen(points: list[Path]) -> None:
    with Freezer([points[0], "/proc"]) as both:
        with pytest.raises(TimezeroError, match=r"/proc cannot be frozen: its kind"):
            both.freeze(30)
        assert not is_frozen(points[0])


# A process that freezes, says so, and is stuck from then on, with a child that inherited everything.
PARENT = """
import os, sys, time
from timezero.concordance.freezer import Freezer
freezer = Freezer(sys.argv[2:])
os.set_inheritable(freezer._socket.fileno(), True)
null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0)]
os.posix_spawn("/bin/sleep", ["sleep", "20"], {}, setsid=True, file_actions=null)
print("started", flush=True)
freezer.freeze(float(sys.argv[1]))
print("frozen", flush=True)
time.sleep(60)
"""


@pytest.fixture
def parent(points: list[Path]) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(deadline: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PARENT, str(deadline), *map(str, points)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "started\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def test_a_killed_parent_thaws_at_random_moments(
    points: list[Path], parent: Callable[[float], subprocess.Popen[str]]
) -> None:
    """Before, while and after freezing takes place; the deadline is far away, and the socket has been inherited."""
    random.seed(0)
    frozen = 0
    for _ in range(12):
        for point in points:
            (point / "dirty").write_bytes(os.urandom(MIB))
        process = parent(60)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.wait(30)
        assert process.stdout is not None
        frozen += process.stdout.read() == "frozen\n"
        # Freezing may be under way still, and has to end by thawing.
        wait_until(thawed(points), 5)
        time.sleep(0.05)
        assert not any(map(is_frozen, points))
    assert frozen, "no moment was after freezing"


def test_a_parent_that_is_stuck_thaws_at_the_deadline(
    points: list[Path], parent: Callable[[float], subprocess.Popen[str]]
) -> None:
    process = parent(0.5)
    assert process.stdout is not None
    assert process.stdout.readline() == "frozen\n"
    process.send_signal(signal.SIGSTOP)
    assert all(map(is_frozen, points))
    assert wait_until(thawed(points), 5) < 1.5


def test_what_hangs_while_freezing_is_thawed_when_it_comes_back(both: list[FileSystem], tmp_path: Path) -> None:
    """A file system on a file of another one, frozen after it: a deadlock until the deadline thaws the one below."""
    below = both[0]
    with file_system("ext4", below.point, size=64 * MIB, name="inner") as inner:
        (inner.point / "dirty").write_bytes(os.urandom(8 * MIB))
        with Freezer([below.point, inner.point]) as nested:
            began = time.monotonic()
            with pytest.raises(DeadlineError, match="does not answer"):
                nested.freeze(0.5)
            assert time.monotonic() - began < 3
            wait_until(thawed([below.point, inner.point]), 10)
        time.sleep(0.2)
        assert not is_frozen(inner.point)
    run("sync", "-f", below.point)


def test_a_device_that_hangs_holds_up_no_other(both: list[FileSystem], points: list[Path], tmp_path: Path) -> None:
    """The last point stands on a server that stopped answering: thawing it waits, and the others are thawed."""
    image = tmp_path / "hanging.image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", image)
    socket = tmp_path / "nbd.sock"
    server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "file", str(image)], stderr=subprocess.DEVNULL)
    try:
        wait_until(socket.exists, 10)
        with ExitStack() as stack:
            hanging = stack.enter_context(mounted_export(f"nbd+unix:///?socket={socket}", tmp_path / "stack"))
            stack.callback(server.send_signal, signal.SIGCONT)
            with Freezer([*points, hanging]) as three:
                three.freeze(1)
                server.send_signal(signal.SIGSTOP)
                wait_until(thawed(points), 4)
                server.send_signal(signal.SIGCONT)
                with pytest.raises(DeadlineError):
                    three.thaw()
            wait_until(thawed([hanging]), 5)
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(30)
