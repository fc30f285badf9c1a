"""bench: copy beside dd, on the user's own hardware.

Both run as whole commands, cold and durable at the end, in alternating rounds, because disks drift: a ratio is taken
round by round. The target is removed afterwards, and also when something fails.

Errors: TimezeroError, UsageError. Threads: one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from timezero._linux.stack import identity_of
from timezero.errors import TimezeroError, UsageError
from timezero.jobs import devices, targets
from timezero.jobs.datasets import designate
from timezero.units import parse_size

#: dd is at its best with one of these nearly everywhere; which one differs.
BLOCKS = ("64K", "256K", "1M", "4M", "16M")
OURS = "timezero copy"
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall clock, and of CPU time, user and system."""

    seconds: float
    cpu_seconds: float


@dataclass
class Row:
    """A command and its runs, one a round."""

    name: str
    runs: list[Run] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Of seconds or cpu_seconds."""
        return float(statistics.median(getattr(run, what) for run in self.runs))


@dataclass
class BenchResult:
    """Everything that was measured; `size` in bytes."""

    source: str
    target: str
    size: int
    rows: list[Row]

    def ratio(self, row: Row) -> float:
        """How many times faster copy is than `row`: the median of the rounds' ratios."""
        pairs = zip(self.rows[0].runs, row.runs, strict=True)
        return statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)

    @property
    def best_dd(self) -> Row:
        """The row of dd with the lowest median."""
        return min(self.rows[1:], key=lambda row: row.median("seconds"))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        rows = [
            {"name": row.name, "ratio": self.ratio(row), "runs": [dataclasses.asdict(run) for run in row.runs]}
            for row in self.rows
        ]
        best = self.best_dd
        return {
            "source": self.source,
            "target": self.target,
            "size": self.size,
            "rows": rows,
            "best_dd": {"name": best.name, "ratio": self.ratio(best)},
        }


def bench(
    source: str,
    target: str,
    *,
    rounds: int = 3,
    blocks: Sequence[str] = BLOCKS,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Measure `timezero copy` and dd, each from `source` to `target`, once a round.

    source: the path of a file or device at rest. target: a new file; with force also a file that exists, which is lost,
    or a block device that nobody uses, whose content is lost. blocks: dd's block sizes. progress: called with a line
    after each run. Raises TimezeroError and its kinds.
    """
    if not 1 <= rounds <= 1000:
        raise UsageError(f"{rounds} rounds: it must be 1 to 1000")
    path = designate(source).path
    if path is None:
        raise UsageError(f"{source}: is no path: bench measures files and devices at rest")
    size = _size(path)
    _check_target(path, target, force=force)
    path, place = os.path.abspath(path), os.path.realpath(target)
    if not shutil.which("dd"):
        raise TimezeroError("there is no dd to compare with: install coreutils")
    rows = [Row(OURS), *(Row(f"dd bs={block}") for block in blocks)]
    try:
        for number in range(rounds):
            # Copy is the first of all: it looks at source and target more closely than dd would.
            for row in rows[number % len(rows) :] + rows[: number % len(rows)]:
                _make_cold(path, place)
                run = _run(_copy(path, place) if row.name == OURS else _dd(path, place, row.name[6:]))
                row.runs.append(run)
                progress(f"round {number + 1} of {rounds}: {row.name}: {run.seconds:.2f} s")
    finally:
        with _uninterrupted():
            _remove(place)
    return BenchResult(source, target, size, rows)


def _size(path: str) -> int:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise TimezeroError(f"{path}: cannot be read: {error.strerror}") from error
    if not size:
        raise UsageError(f"{path}: is empty: there is nothing to measure")
    return size


def _check_target(source: str, target: str, *, force: bool) -> None:
    """Nothing that exists is lost without force, and a device in use or the source never."""
    if target == targets.STREAM:
        raise UsageError("bench needs a file or a block device as its target")
    targets.check_target(target, force=force)
    targets.check_apart(target, "the target", [(source, source, identity_of(os.stat(source)))])
    if not os.path.exists(target) or not stat.S_ISBLK(os.stat(target).st_mode):
        return
    if not force:
        raise TimezeroError(f"{target}: its content would be lost: say so with --force, or name a new file")
    try:
        fd = devices.open_exclusive(target, os.O_RDWR)
    except OSError as error:
        raise TimezeroError(f"{target}: cannot be written: {error.strerror}") from error
    if fd is None:
        raise TimezeroError(f"{target}: {devices.user_of(os.stat(target).st_rdev)}: free it first")
    os.close(fd)


def _remove(target: str) -> None:
    """Files only: a device stays where it is."""
    with suppress(FileNotFoundError):
        if stat.S_ISREG(os.lstat(target).st_mode):
            os.unlink(target)


def _make_cold(source: str, target: str) -> None:
    """No target file from before, nothing of the source in memory, no writes still on their way."""
    _remove(target)
    os.sync()
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _copy(source: str, target: str) -> list[str]:
    return [sys.executable, "-P", "-m", "timezero", "copy", source, target]


def _dd(source: str, target: str, block: str) -> list[str]:
    """Direct where that works, and durable at the end."""
    command = ["dd", f"if={source}", f"of={target}", f"bs={parse_size(block)}", "conv=fsync", "status=none"]
    command += ["iflag=direct"] if _is_direct(source, os.O_RDONLY) else []
    return command + (["oflag=direct"] if _can_hold_direct(target) else [])


def _is_direct(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return True


def _can_hold_direct(target: str) -> bool:
    if os.path.exists(target):
        return _is_direct(target, os.O_WRONLY)
    return _is_direct(os.path.dirname(os.path.abspath(target)), os.O_RDWR | os.O_TMPFILE)


@contextmanager
def _uninterrupted() -> Iterator[set[int | signal.Signals]]:
    """Interrupts wait: nothing is started that nobody ends, nothing left half removed. Gives the mask from before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(command: list[str]) -> Run:
    """A command from start to end. Raises TimezeroError with its own words when it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    with tempfile.TemporaryFile() as errors, _uninterrupted() as mask:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
        )
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = time.perf_counter() - begin
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().removeprefix("timezero: ").splitlines()
            raise TimezeroError(said[-1] if said else f"{command[0]}: failed with exit code {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime)
