"""The application: 4k random writes over NBD, and what it got out of a window of time.

Every update's latency is kept, so that a figure is about the backup's own window and nothing else. Two loads:
`Fio` keeps a depth full (its IOPS say what the backup leaves); `Paced` writes at a fixed rate whatever happens, its
latencies counted from the instant each update was due, so that a stall is charged to all the updates it delays.
Both clocks are CLOCK_REALTIME's, in seconds.
"""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from proof import load

START = 1.0  # seconds until fio is through its start-up and has written steadily for a moment
TIMEOUT = 60.0
RECORD = np.dtype([("sequence", "<u8"), ("start", "<u8"), ("end", "<u8"), ("offset", "<u8"), ("rest", "<u8")])
NEVER = np.uint64((1 << 64) - 1)


@dataclass(frozen=True)
class Figures:
    """Of one window: updates a second, latencies in microseconds."""

    iops: float
    p50: float
    p99: float
    worst: float
    p999: float


def figures(ends: np.ndarray, latencies_us: np.ndarray, begin: float, end: float) -> Figures:
    """Of the updates that ended in the window. Raises RuntimeError when the application was not running then."""
    if not len(ends) or ends[0] > begin or ends[-1] < end - 1.0:
        raise RuntimeError("the application did not run all through the window")
    inside = latencies_us[(ends >= begin) & (ends < end)]
    if not len(inside):
        # Nothing ended: who waited all the time waited at least for the window.
        return Figures(0.0, *[(end - begin) * 1e6] * 4)
    p50, p99, p999 = map(float, np.percentile(inside, [50, 99, 99.9]))
    return Figures(len(inside) / (end - begin), p50, p99, float(inside.max()), p999)


class Fio:
    """fio's nbd engine, 4k random requests at a depth. A context manager; `stop` before asking for figures.

    size, offset: the part of the volume that they go to, in bytes. read_percent: of the requests. rate: requests a
    second at most, at random instants; 0: as many as go.
    """

    def __init__(
        self,
        uri: str,
        size: int,
        folder: Path,
        depth: int = 4,
        seconds: float = 300,
        read_percent: int = 0,
        rate: int = 0,
        offset: int = 0,
    ) -> None:
        self._log = folder / "fio_lat.1.log"
        self._log.unlink(missing_ok=True)
        command = [
            "fio", "--name=application", "--ioengine=nbd", f"--uri={uri}", "--bs=4k",
            f"--rw={'randrw' if read_percent else 'randwrite'}", f"--rwmixread={read_percent}",
            f"--size={size}", f"--offset={offset}", f"--iodepth={depth}", "--time_based", f"--runtime={seconds}",
            "--norandommap", "--randrepeat=0", "--thread",
            f"--write_lat_log={folder / 'fio'}", "--log_unix_epoch=1", "--disable_slat=1", "--disable_clat=1",
            "--output-format=terse",
        ]  # fmt: skip
        if rate:
            # Each direction has a rate of its own.
            reads = rate * read_percent // 100
            command += [f"--rate_iops={max(reads, 1)},{max(rate - reads, 1)}", "--rate_process=poisson"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder
        )
        time.sleep(START)

    def stop(self) -> None:
        """Ends it and reads its log. Raises RuntimeError when an update failed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        err = self._process.communicate(timeout=TIMEOUT)[1].decode(errors="replace")
        if self._process.returncode not in (0, 128):
            raise RuntimeError(f"fio ended with {self._process.returncode}: {err.strip()}")
        rows = np.loadtxt(self._log, delimiter=",", usecols=(0, 1), dtype=np.int64, ndmin=2)
        order = np.argsort(rows[:, 0], kind="stable")
        self._ends, self._latencies = rows[order, 0] / 1e3, rows[order, 1] / 1e3
        self._log.unlink()

    def figures(self, begin: float, end: float) -> Figures:
        return figures(self._ends, self._latencies, begin, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=TIMEOUT)


class Paced:
    """proof/blockload at a fixed rate, 4k random writes; the same surface as Fio."""

    def __init__(self, socket: Path, export: str, size: int, folder: Path, rate: int = 500) -> None:
        self._rate = rate
        options = {"min": 4096, "max": 4096, "grain": 4096, "rate": rate}
        self._load = load.Load(
            load.build(folder), socket, export, volume=1, size=size, directory=folder, connections=1, depth=256,
            seconds=300, options=options,
        )  # fmt: skip
        self._load.start()
        time.sleep(START)

    def stop(self) -> None:
        self._load.stop()
        log = self._load.logs[0]
        rows = np.fromfile(log, dtype=RECORD)
        log.unlink()
        # CLOCK_MONOTONIC to CLOCK_REALTIME; the first update was due when it was sent, each next one a period later.
        shift = time.time_ns() - time.monotonic_ns()
        due = rows["start"][0] + np.arange(len(rows), dtype=np.uint64) * np.uint64(1_000_000_000 // self._rate)
        if np.any(rows["end"] == NEVER):
            raise RuntimeError("an update was never acknowledged")
        order = np.argsort(rows["end"], kind="stable")
        ends = (rows["end"].astype(np.int64) + shift) / 1e9
        self._ends = ends[order]
        self._latencies = ((rows["end"].astype(np.int64) - due.astype(np.int64)) / 1e3)[order]

    def figures(self, begin: float, end: float) -> Figures:
        return figures(self._ends, self._latencies, begin, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._load.kill()
