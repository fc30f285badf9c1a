"""Measuring whole commands beside each other: alternating rounds, medians, ratios; wall and CPU seconds, peak memory.

These machines drift: a figure means something only against another figure of the same rounds. So every
round runs each contender once, in an order that rotates, and ratios are taken round by round.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GIB = 1 << 30


@dataclass
class Sample:
    """One run: seconds of wall clock and CPU (user and system, children included), bytes of peak memory."""

    wall: float
    cpu: float
    peak: int


@dataclass
class Contender:
    """A command to be measured.

    before: runs untimed ahead of each run, e.g. to remove the target. environment: on top of ours. system_cpu: count
    the CPU time of the whole machine, for commands that have work done by others (loop devices, servers).
    """

    name: str
    command: Sequence[str]
    before: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    system_cpu: bool = False
    samples: list[Sample] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median(getattr(s, what) for s in self.samples)

    def spread(self) -> float:
        """Noise: the range of its wall times over their median."""
        walls = [s.wall for s in self.samples]
        return (max(walls) - min(walls)) / statistics.median(walls)


def busy_seconds(stat: str, ticks: int) -> float:
    """CPU seconds of all processors since boot, without idle time, from the text of /proc/stat."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / ticks


def _machine_cpu() -> float:
    return busy_seconds(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))


def _children_cpu() -> float:
    # Not os.times(): it counts in ticks of 10 ms, and there are commands that take two of them.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _children_peak(root: int, stop: threading.Event, out: list[int]) -> None:
    """Peak of the summed resident memory of a process and its descendants, sampled every 5 ms at first, then 50."""
    page, looks = os.sysconf("SC_PAGE_SIZE"), itertools.count()
    while not stop.wait(0.005 if next(looks) < 20 else 0.05):
        total, queue = 0, [root]
        while queue:
            pid = queue.pop()
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
                for task in os.listdir(f"/proc/{pid}/task"):
                    queue += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
            except (OSError, IndexError, ValueError):
                continue
        out[0] = max(out[0], total)


def _environment() -> dict[str, str]:
    """Ours, but for what would make a working tree compile its own sources for every command: a package is compiled."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run_once(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, system_cpu: bool = False
) -> Sample:
    """Runs a command to its end. Raises CalledProcessError with its error output when it fails."""
    peak, stop = [0], threading.Event()
    cpu = _machine_cpu if system_cpu else _children_cpu
    before, begin = cpu(), time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**_environment(), **(environment or {})},
    )
    watcher = threading.Thread(target=_children_peak, args=(process.pid, stop, peak))
    watcher.start()
    err = process.communicate()[1]
    wall = time.perf_counter() - begin
    stop.set()
    watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), stderr=err.decode(errors="replace"))
    return Sample(wall, cpu() - before, peak[0])


def drop_caches() -> None:
    """Cold caches for the next run; needs root, and says so once when it cannot."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        print("bench: caches cannot be dropped without root: runs are warm", file=sys.stderr)


def rotated(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of a round: each contender is first in turn."""
    first = number % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def alternate(contenders: Sequence[Contender], rounds: int, *, cold: bool = True) -> None:
    """`rounds` rounds, each contender once a round, the order rotating; with cold caches, unless told otherwise."""
    for number in range(rounds):
        for contender in rotated(contenders, number):
            contender.before()
            if cold:
                drop_caches()
            sample = run_once(contender.command, contender.environment, system_cpu=contender.system_cpu)
            contender.samples.append(sample)
            print(f"  round {number + 1}: {contender.name}: {sample.wall:.2f} s", file=sys.stderr, flush=True)


def ratio(a: Contender, b: Contender, what: str = "wall") -> float:
    """Median over the rounds of b's figure over a's: how many times faster a is."""
    return statistics.median(
        getattr(y, what) / max(getattr(x, what), 1e-9) for x, y in zip(a.samples, b.samples, strict=True)
    )


def best(contenders: Sequence[Contender]) -> Contender:
    """The one with the lowest median wall time."""
    return min(contenders, key=lambda c: c.median("wall"))


def table(contenders: Sequence[Contender], ours: Contender, size: int) -> str:
    """Medians side by side; `ratio`: how many times faster ours is than the row; `noise`: the spread of its rounds."""
    lines = [f"{'':<28}{'wall s':>8}{'GB/s':>8}{'CPU s/GiB':>11}{'peak MiB':>10}{'ratio':>8}{'noise':>8}"]
    for c in contenders:
        wall = c.median("wall")
        lines.append(
            f"{c.name:<28}{wall:>8.2f}{size / wall / 1e9:>8.2f}{c.median('cpu') / (size / GIB):>11.3f}"
            f"{c.median('peak') / (1 << 20):>10.0f}{ratio(ours, c):>8.2f}{c.spread():>8.0%}"
        )
    return "\n".join(lines)


def as_document(contenders: Sequence[Contender], ours: Contender, size: int) -> dict[str, Any]:
    """What the table shows and each sample behind it, for JSON."""
    return {
        "size": size,
        "contenders": [
            {
                "name": c.name,
                "ratio": ratio(ours, c),
                "wall": c.median("wall"),
                "cpu": c.median("cpu"),
                "peak": c.median("peak"),
                "cpu_of": "machine" if c.system_cpu else "process",
                "samples": [vars(s) for s in c.samples],
            }
            for c in contenders
        ],
    }


def as_json(contenders: Sequence[Contender], ours: Contender, size: int) -> str:
    return json.dumps(as_document(contenders, ours, size), indent=1)
