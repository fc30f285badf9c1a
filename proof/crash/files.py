"""A case of the sweep with a file dataset: somebody dies while the file system on the served volume is frozen.

Thawed: the file system takes writes again (where its server lived on), and the watchdog is gone. Application: what it
had synced is in its file, on the volume that is served and mounted again. The rest is as in case.py: no point, no
leavings, and the next backup works.

Needs root.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from proof.crash.case import RATE, Case, Outcome, die
from proof.crash.steps import FILES, WHO
from proof.crash.world import MIB, TIMEOUT, World, WrongError, expect, wait_for
from proof.stack import mounted_export

DISK = 32 * MIB
RECORD = 16
THAW = 15.0  # seconds: within the watchdog's own deadline, and far within


def all_cases() -> list[Case]:
    """Everybody, at each step."""
    return [Case("files", step, who) for step in FILES for who in WHO]


class Log:
    """Appends records to a file, each of them synced; counts them. One that cannot be written ends it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with suppress(OSError), self.path.open("ab", buffering=0) as file:
            while not self._stop.is_set():
                file.write(b"%015d\n" % self.synced)
                os.fsync(file.fileno())
                self.synced += 1

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """After the record under way. Safe to repeat."""
        self._stop.set()
        self._thread.join(TIMEOUT)
        expect(not self._thread.is_alive(), "a writer hangs: the file system is still frozen")


@contextmanager
def mounted(world: World, number: int) -> Iterator[Path]:
    """The file system on the served volume; number: of this mount."""
    with mounted_export(f"nbd+unix:///data?socket={world.nbd}", world.folder / f"mount{number}") as point:
        yield point


def run(case: Case, folder: Path, package: Path) -> Outcome:
    """In a folder of its own, which must be there and empty."""
    began = time.monotonic()
    problem = ""
    try:
        with World(folder, package, engine=case.engine) as world, ExitStack() as stack:
            _run(world, case, stack)
            stack.close()
            world.stop_server()
            world.expect_nothing_left()
            expect(not _watchdogs(package), "a watchdog is left")
    except (WrongError, ValueError, OSError, AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
        problem = f"{type(error).__name__}: {error}"
    return Outcome(case, "" if problem else "no point, thawed", time.monotonic() - began, problem)


def _run(world: World, case: Case, stack: ExitStack) -> None:
    world.image.write_bytes(bytes(DISK))
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", world.image], check=True, timeout=TIMEOUT)
    world.serve()
    first = stack.enter_context(ExitStack())
    point = first.enter_context(mounted(world, 1))
    (point / "data").write_bytes(os.urandom(4 * MIB))
    log = Log(point / "log")
    first.callback(log.stop)
    wait_for(lambda: log.synced > 10, "nothing can be written")
    job = world.start(*_words(world, point), *RATE, point=case.step.name, stop=case.who != case.step.at)
    die(world, job, case.step, case.who)
    if world.is_served:
        before = log.synced
        wait_for(lambda: log.synced > before + 1, "the file system is still frozen", THAW)
        wait_for(lambda: not world.sessions(), "the subsystem keeps the session", THAW)
    else:
        # An update that waits for a server that is gone has its error; unmounting shows that nothing is frozen.
        wait_for(lambda: not log.alive, "the writer neither goes on nor ends", THAW)
        with suppress(RuntimeError):
            first.close()
        world.serve()
        point = stack.enter_context(mounted(world, 2))
        records = (point / "log").read_bytes()
        expect(len(records) >= log.synced * RECORD, f"{log.synced} records were synced, {len(records)} bytes are there")
    expect(world.listed() == [], "a recovery point is listed")
    world.succeed(*_words(world, point))
    world.verify()
    world.prune()


def _words(world: World, point: Path) -> list[object]:
    return ["backup", "--repo", world.repository, "--control", world.control, f"data:{point}/data"]


def _watchdogs(package: Path) -> list[str]:
    program = str(package / "timezero" / "_linux" / "freezer")
    found = []
    for link in Path("/proc").glob("[0-9]*/exe"):
        with suppress(OSError):
            if os.readlink(link).startswith(program):
                found.append(link.parent.name)
    return found
