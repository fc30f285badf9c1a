"""The NBD data plane on this machine: fio's nbd engine against `timezero serve` and the peers that are installed.

One measurement is one server on one volume under one load. Rounds alternate, in an order that rotates, because disks
and virtual CPUs drift by a third between runs: figures are medians, ratios are taken round by round.

Errors: UsageError, TimezeroError (fio is missing, a server does not start). Threads: one. Every server that is started
is ended by its process id, and its files are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timezero.errors import TimezeroError, UsageError
from timezero.units import MIB, format_size

_START_S = 20.0
_STOP_S = 20.0
_TICK = os.sysconf("SC_CLK_TCK")
_NO_FIO = "fio is not installed: it makes the load (Debian: apt-get install fio)"


@dataclass(frozen=True)
class Load:
    """What fio does: `rw` as fio calls it, requests of `block` bytes, `depth` of them in flight."""

    name: str
    rw: str
    block: int
    depth: int

    @property
    def writes(self) -> bool:
        return "write" in self.rw


LOADS = (
    Load("4k random read, depth 1", "randread", 4096, 1),
    Load("4k random read, depth 16", "randread", 4096, 16),
    Load("4k random write, depth 1", "randwrite", 4096, 1),
    Load("4k random write, depth 16", "randwrite", 4096, 16),
    Load("128k sequential read, depth 16", "read", 128 * 1024, 16),
    Load("128k sequential write, depth 16", "write", 128 * 1024, 16),
)


@dataclass
class Figures:
    """One run. Requests a second; latencies in microseconds; the server's CPU time a request in microseconds, and its
    peak memory in bytes."""

    iops: float
    p50_us: float
    p99_us: float
    p999_us: float
    cpu_us: float
    memory: int


Command = Callable[[Path, Path, bool], Sequence[str]]  # volume, socket, read-only


@dataclass
class Contender:
    """A server to be measured, and what was measured of it: the runs of each load, a round each."""

    name: str
    command: Command
    runs: dict[Load, list[Figures]] = field(default_factory=dict)

    def median(self, load: Load, what: str) -> float:
        return float(statistics.median(getattr(figures, what) for figures in self.runs[load]))


# ---- servers ----


def timezero(*options: str) -> Command:
    """`timezero serve` with these options."""

    def command(volume: Path, at: Path, read_only: bool) -> Sequence[str]:
        words = [sys.executable, "-m", "timezero", "serve", "--quiet", "--nbd", f"nbd+unix:///?socket={at}"]
        words += ["--control", str(at.with_name("control")), "--volume", f"volume={volume}", *options]
        return [*words, "--read-only", "volume"] if read_only else words

    return command


def _qemu_nbd(volume: Path, at: Path, read_only: bool) -> Sequence[str]:
    words = ["qemu-nbd", "--persistent", "--format=raw", "--cache=none", "--aio=io_uring", f"--socket={at}"]
    return [*words, "--export-name=volume", *(["--read-only"] if read_only else []), str(volume)]


def _qemu_storage_daemon(volume: Path, at: Path, read_only: bool) -> Sequence[str]:
    mode = "on" if read_only else "off"
    name = str(volume).replace(",", ",,")
    node = f"driver=file,node-name=file,filename={name},cache.direct=on,aio=io_uring,read-only={mode}"
    raw = f"driver=raw,node-name=volume,file=file,read-only={mode}"
    export = f"type=nbd,id=nbd,node-name=volume,name=volume,writable={'off' if read_only else 'on'}"
    server = f"addr.type=unix,addr.path={at}"
    words = ["qemu-storage-daemon", "--blockdev", node, "--blockdev", raw]
    return [*words, "--nbd-server", server, "--export", export]


def _nbdkit(volume: Path, at: Path, read_only: bool) -> Sequence[str]:
    return ["nbdkit", "--foreground", f"--unix={at}", *(["--readonly"] if read_only else []), "file", str(volume)]


def peers() -> list[Contender]:
    """The peers that are installed. nbdkit goes through the page cache, the others around it."""
    every = (
        ("qemu-nbd", "qemu-nbd", _qemu_nbd),
        ("qemu-storage-daemon", "qemu-storage-daemon", _qemu_storage_daemon),
        ("nbdkit file", "nbdkit", _nbdkit),
    )
    return [Contender(name, command) for name, program, command in every if shutil.which(program)]


def _answers(at: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(at))
            return len(sock.recv(8)) > 0
        except OSError:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(contender: Contender, volume: Path, folder: Path, *, read_only: bool = False) -> Iterator[tuple[int, str]]:
    """A server on `volume` with its sockets in `folder`: its process id, its NBD URI. Raises TimezeroError."""
    at, log = folder / "nbd", folder / "log"
    at.unlink(missing_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            contender.command(volume, at, read_only), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(at):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines() or ["it does not say why"]
                raise TimezeroError(f"{contender.name} cannot serve {volume}: {said[-1]}")
            time.sleep(0.005)
        yield process.pid, f"nbd+unix:///volume?socket={at}"
    finally:
        _end(process)


def _cpu_seconds(pid: int) -> float:
    """User and system time of all threads, the kernel's on behalf of their rings included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _peak_memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


# ---- loads ----


def _cpus() -> tuple[set[int], set[int]]:
    """(the server's, the client's) when they are kept apart: the last one is the client's."""
    cpus = sorted(os.sched_getaffinity(0))
    return set(cpus[:-1] or cpus), {cpus[-1]}


def _keep_server_apart(pid: int) -> None:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), _cpus()[0])


def fio(uri: str, load: Load, seconds: float, *, apart: bool = False) -> dict[str, Any]:
    """Run a load; what fio's JSON says of its one direction. Raises TimezeroError. apart: on the client's CPU alone."""
    command = ["taskset", "--cpu-list", ",".join(map(str, _cpus()[1]))] if apart else []
    command += [
        "fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", f"--rw={load.rw}", f"--bs={load.block}",
        f"--iodepth={load.depth}", "--time_based", f"--runtime={round(seconds * 1000)}ms", "--norandommap",
        "--randrepeat=0", "--scramble_buffers=0", "--percentile_list=50:99:99.9", "--output-format=json",
    ]  # fmt: skip
    try:
        # Its working directory: fio makes files where it thinks it needs them.
        done = subprocess.run(command, capture_output=True, timeout=seconds + 60, cwd=tempfile.gettempdir(), check=True)
        (job,) = json.loads(done.stdout[done.stdout.index(b"{") :])["jobs"]
    except FileNotFoundError:
        raise TimezeroError(_NO_FIO) from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr + error.stdout).decode(errors="replace").strip().splitlines() or ["it does not say why"]
        raise TimezeroError(f"fio failed: {said[0]}") from None
    except subprocess.TimeoutExpired:
        raise TimezeroError("fio did not end in time") from None
    except (ValueError, KeyError) as error:
        raise TimezeroError(f"fio's answer makes no sense: {error}") from None
    return dict(job["write" if load.writes else "read"])


def run_load(pid: int, uri: str, load: Load, seconds: float, *, apart: bool = False) -> Figures:
    """One load on a running server. apart: fio has a CPU for itself, the server all others."""
    if apart:
        _keep_server_apart(pid)
    before = _cpu_seconds(pid)
    result = fio(uri, load, seconds, apart=apart)
    cpu = _cpu_seconds(pid) - before
    if not result["total_ios"]:
        raise TimezeroError(f"no request was answered within {seconds:g} s")
    p50, p99, p999 = (value / 1000 for _, value in sorted(result["clat_ns"]["percentile"].items()))
    return Figures(result["iops"], p50, p99, p999, 1e6 * cpu / result["total_ios"], _peak_memory(pid))


def measure(
    contender: Contender,
    volume: Path,
    folder: Path,
    load: Load,
    seconds: float,
    *,
    read_only: bool = False,
    apart: bool = False,
) -> Figures:
    """Start, load, end. The page cache forgets the volume first, for those who go through it."""
    with volume.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with running(contender, volume, folder, read_only=read_only) as (pid, uri):
        return run_load(pid, uri, load, seconds, apart=apart)


def alternate(
    contenders: Sequence[Contender],
    loads: Sequence[Load],
    rounds: int,
    once: Callable[[Contender, Load], Figures],
    say: Callable[[str], None],
) -> None:
    """`rounds` rounds a load, each contender once a round, the order rotating; what is measured goes to `runs`."""
    for load in loads:
        for number in range(rounds):
            turn = number % len(contenders)
            for contender in [*contenders[turn:], *contenders[:turn]]:
                figures = once(contender, load)
                contender.runs.setdefault(load, []).append(figures)
                say(f"{load.name}, round {number + 1}: {contender.name}: {figures.iops:.0f} a second")


# ---- results ----


def ratio(ours: Contender, other: Contender, load: Load, what: str = "iops") -> float:
    """Median over the rounds of our figure over the other's."""
    pairs = zip(ours.runs[load], other.runs[load], strict=True)
    return float(statistics.median(getattr(a, what) / max(getattr(b, what), 1e-9) for a, b in pairs))


def spread(contender: Contender, load: Load) -> float:
    """The widest distance between two rounds, as a share of the median: the noise."""
    rates = [figures.iops for figures in contender.runs[load]]
    return (max(rates) - min(rates)) / statistics.median(rates)


def table(contenders: Sequence[Contender], loads: Sequence[Load]) -> str:
    """Medians side by side; `ratio`: how many times the row's rate the first contender reaches."""
    heading = f"{'':<28}{'IOPS':>9}{'MB/s':>8}{'p50 us':>9}{'p99 us':>9}{'p99.9 us':>10}{'CPU us':>8}{'MiB':>6}"
    lines = [heading + f"{'ratio':>7}{'noise':>7}"]
    for load in loads:
        lines.append(load.name)
        for c in contenders:
            iops = c.median(load, "iops")
            latency = "".join(
                f"{c.median(load, what):>{width}.0f}" for what, width in (("p50_us", 9), ("p99_us", 9), ("p999_us", 10))
            )
            lines.append(
                f"  {c.name:<26}{iops:>9.0f}{iops * load.block / 1e6:>8.0f}{latency}{c.median(load, 'cpu_us'):>8.1f}"
                f"{c.median(load, 'memory') / MIB:>6.0f}{ratio(contenders[0], c, load):>7.2f}{spread(c, load):>7.0%}"
            )
    return "\n".join(lines)


def as_json(contenders: Sequence[Contender], loads: Sequence[Load]) -> list[dict[str, Any]]:
    """Every run, with the medians of the ratios."""
    return [
        {
            "load": load.name,
            "block": load.block,
            "contender": c.name,
            "ratio": ratio(contenders[0], c, load),
            "runs": [vars(figures) for figures in c.runs[load]],
        }
        for load in loads
        for c in contenders
    ]


# ---- timezero bench --serve ----


@dataclass
class Result:
    """What `timezero bench --serve` found."""

    path: str
    size: int
    contenders: Sequence[Contender]
    loads: Sequence[Load]

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "results": as_json(self.contenders, self.loads)}

    def text(self) -> str:
        """A table, and what it is about."""
        return f"{self.path}, {format_size(self.size)}, medians\n{table(self.contenders, self.loads)}"


@contextmanager
def scratch_volume(folder: Path, size: int) -> Iterator[Path]:
    """A file of `size` bytes in `folder`, without holes, of bytes that do not compress; removed again."""
    block = os.urandom(MIB)
    with tempfile.NamedTemporaryFile(prefix="timezero-bench-", suffix=".img", dir=folder) as file:
        for offset in range(0, size, MIB):
            file.write(block[: size - offset])
        file.flush()
        os.fdatasync(file.fileno())
        yield Path(file.name)


def run(
    path: str | os.PathLike[str],
    *,
    size: int = 1 << 30,
    seconds: float = 2.0,
    rounds: int = 3,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Measure the data plane at `path`. Raises UsageError, TimezeroError.

    A directory: reads and writes, on a file of `size` bytes that is made in it and removed again. A file or device:
    it is served read-only, and read. seconds: of one run, of which there are loads x contenders x rounds. say: hears of
    each.
    """
    place = Path(path).absolute()
    try:
        kind = place.stat().st_mode
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror}: name a directory, a file or a device") from None
    read_only = not stat.S_ISDIR(kind)
    if read_only:
        with place.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
    if rounds < 1 or seconds <= 0 or size < MIB:
        raise UsageError("a bench needs a round, some time, and a megabyte")
    if not shutil.which("fio"):
        raise TimezeroError(_NO_FIO)
    contenders = [Contender("timezero", timezero()), *peers()]
    loads = [load for load in LOADS if not (read_only and load.writes)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timezero-bench-")))
        volume = place if read_only else stack.enter_context(scratch_volume(place, size))

        def once(contender: Contender, load: Load) -> Figures:
            return measure(contender, volume, folder, load, seconds, read_only=read_only)

        alternate(contenders, loads, rounds, once, say)
    return Result(str(place), size, contenders, loads)
