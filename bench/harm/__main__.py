"""An application over NBD, first alone and then during one full backup, on the same server: what it keeps.

    python -m bench.harm [--size 2G] [--rounds 3] [--load NAME]... [--system NAME]... [--slow TIMES] [--idle 8]
                         [--quarter FRACTION] [--parts N] [--directory DIR] [--json FILE]

Loads: write-1 and write-8, 4k random writes at depth 1 and 8; mixed-8, 70 % reads; quarter, 4k random writes at a
quarter of what write-8 had alone, at random instants. And, when it is named, for it wants a large --size: local, as
many, but all to one part in `--parts` (1024) of the volume, where its last quarter begins: what an application that
keeps to some of its data has, once interception is through with that.

Systems: timezero giving way (opportunistic), timezero at full speed, qemu-storage-daemon's full backup job at its
defaults; and interception alone (held): a session of which nothing is copied for some seconds, the floor below which
no way of copying gets. Each run starts its server anew, lets the application run alone for `--idle` seconds and then
backs up; `kept` and `x alone` compare the two windows of one run. Medians over rounds; the order rotates. Volume and
target are files in one directory, so on one disk.

--slow TIMES: the target is so many times slower than timezero's copy with nobody else there (nbdkit's rate filter, in
memory, so that the target takes nothing from the volume's disk). An application that never rests overwrites all of the
volume meanwhile, so the sidefile has room for all of it, in memory: half as much again as the volume. Needs root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.copy.sources import make_source, size_of
from bench.harm.target import slow_device
from bench.intercept.application import Figures, Fio
from bench.intercept.systems import Qemu, Timezero, drop

FIO_SECONDS = 900.0
PROBE_SECONDS = 4.0
SETTLE_SECONDS = 1.0  # beside what Fio takes itself, for a machine that is slow today
STALL_SECONDS = 1.5  # in which an application that the backup's end finds waiting gets its answer
HELD_SECONDS = 5.0
GIB = 1 << 30


@dataclass(frozen=True)
class Load:
    """4k random requests to one part in `parts` of the volume. rate: a second; 0: as many as go."""

    name: str
    depth: int
    read_percent: int = 0
    rate: int = 0
    parts: int = 1


LOADS = {
    load.name: load
    for load in (
        Load("write-1", 1),
        Load("write-8", 8),
        Load("mixed-8", 8, 70),
        Load("quarter", 8),
        Load("local", 8),
    )
}
AT_A_QUARTER = ("quarter", "local")
DEFAULT = [name for name in LOADS if name != "local"]


class Held(Timezero):
    """A session outside its hours, with room for all before-images: nothing is copied, it ends after HELD_SECONDS."""

    def __init__(self, volume: Path, folder: Path, serve: Sequence[str] = ()) -> None:
        memory = str(volume.stat().st_size * 3 // 2)
        super().__init__(volume, folder, (*serve, "--sidefile-memory", memory, "--max-session-memory", memory))

    def backup(self, target: Path, settings: Sequence[str]) -> dict[str, Any]:
        later = time.strftime("%H:%M", time.localtime(time.time() + 12 * 3600))
        end = time.strftime("%H:%M", time.localtime(time.time() + 12 * 3600 + 60))
        process = self.start(target, ("--window", f"{later}-{end}"))
        try:
            time.sleep(HELD_SECONDS)
            if process.poll() is not None:
                raise RuntimeError(f"timezero copy ended with {process.returncode} outside its hours")
        finally:
            process.terminate()  # SIGINT is ignored by whoever was started in a shell's background
            process.communicate(timeout=60)
        return {}


SYSTEMS: dict[str, tuple[type[Timezero] | type[Qemu], Any]] = {
    "held": (Held, ()),
    "opportunistic": (Timezero, ("--mode", "opportunistic")),
    "full": (Timezero, ("--mode", "full")),
    "qemu": (Qemu, {}),
}


@dataclass(frozen=True)
class Run:
    """Both windows of one run, and the backup's seconds."""

    alone: Figures
    during: Figures
    seconds: float


@dataclass
class Row:
    """One load on one system."""

    load: Load
    system: str
    runs: list[Run] = field(default_factory=list)

    def during(self, name: str) -> float:
        return statistics.median(getattr(run.during, name) for run in self.runs)

    def alone(self, name: str) -> float:
        return statistics.median(getattr(run.alone, name) for run in self.runs)

    def ratio(self, name: str) -> float:
        return statistics.median(getattr(run.during, name) / getattr(run.alone, name) for run in self.runs)

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)


@dataclass(frozen=True)
class Place:
    """The volume, the target, a folder for sockets and logs, bytes, seconds that the application runs alone.

    serve: more options of `timezero serve`.
    """

    volume: Path
    target: Path
    folder: Path
    size: int
    idle: float
    serve: tuple[str, ...] = ()


def run(load: Load, system: str, place: Place) -> Run:
    """One run. Raises RuntimeError when anything of it failed."""
    kind, settings = SYSTEMS[system]
    drop(place.target)
    serve = () if kind is Qemu else place.serve
    with kind(place.volume, place.folder, serve) as server, _fio(server.uri, load, place) as application:
        time.sleep(SETTLE_SECONDS)
        first = time.time()
        time.sleep(place.idle)
        begin = time.time()
        server.backup(place.target, settings)
        end = time.time()
        time.sleep(STALL_SECONDS)
        application.stop()
        return Run(application.figures(first, begin), application.figures(begin, end), end - begin)


def _fio(uri: str, load: Load, place: Place) -> Fio:
    return Fio(
        uri,
        place.size // load.parts,
        place.folder,
        offset=place.size // 4 * 3 if load.parts > 1 else 0,
        depth=load.depth,
        seconds=FIO_SECONDS,
        read_percent=load.read_percent,
        rate=load.rate,
    )


def iops_alone(place: Place, load: Load) -> float:
    """What the load has on a server that backs up nothing."""
    with Timezero(place.volume, place.folder) as server, _fio(server.uri, load, place) as application:
        time.sleep(SETTLE_SECONDS)
        begin = time.time()
        time.sleep(PROBE_SECONDS)
        application.stop()
        return application.figures(begin, begin + PROBE_SECONDS).iops


def seconds_alone(place: Place) -> float:
    """timezero's copy at full speed, nobody else there."""
    drop(place.target)
    with Timezero(place.volume, place.folder) as server:
        begin = time.time()
        server.backup(place.target, ("--mode", "full"))
        return time.time() - begin


def table(rows: Sequence[Row]) -> str:
    names = ("IOPS", "kept", "p50 us", "p99 us", "x alone", "p99.9 us", "x alone", "backup s")
    lines = [f"{'load':<10}{'system':<15}" + "".join(f"{name:>10}" for name in names)]
    for row in rows:
        lines.append(
            f"{row.load.name:<10}{row.system:<15}{row.during('iops'):>10.0f}{row.ratio('iops'):>10.0%}"
            f"{row.during('p50'):>10.0f}{row.during('p99'):>10.0f}{row.ratio('p99'):>10.2f}"
            f"{row.during('p999'):>10.0f}{row.ratio('p999'):>10.2f}{row.seconds:>10.1f}"
        )
    lines.append("")
    for name in dict.fromkeys(row.load.name for row in rows):
        alone = [row for row in rows if row.load.name == name]
        told = ", ".join(f"{row.system} {row.alone('iops'):.0f} IOPS, p99 {row.alone('p99'):.0f} us" for row in alone)
        lines.append(f"{name} alone: {told}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default=2 * GIB, type=size_of)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--load", action="append", default=[], choices=list(LOADS))
    parser.add_argument("--system", action="append", default=[], choices=list(SYSTEMS))
    parser.add_argument("--slow", type=float, default=0, metavar="TIMES")
    parser.add_argument("--idle", type=float, default=8.0, metavar="SECONDS")
    parser.add_argument("--quarter", type=float, default=0.25, metavar="FRACTION")
    parser.add_argument("--parts", type=int, default=1024, metavar="N", help="local keeps to one part in so many")
    parser.add_argument("--directory", default=None)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    if "local" in options.load and not 1 < options.parts <= options.size // (1 << 20):
        parser.error(f"--parts {options.parts}: more than one, and each of 1 MiB or more")
    systems = options.system or list(SYSTEMS)
    if not shutil.which("qemu-storage-daemon") and "qemu" in systems:
        print("not measured, not installed: qemu-storage-daemon", file=sys.stderr)
        systems.remove("qemu")
    base = Path(options.directory or ".").resolve()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=base)))
        volume = make_source(folder / "volume.img", options.size)
        place = Place(volume, folder / "target.img", folder, options.size, options.idle)
        loads = {name: LOADS[name] for name in options.load or DEFAULT}
        if any(name in loads for name in AT_A_QUARTER):
            rate = int(iops_alone(place, LOADS["write-8"]) * options.quarter)
            loads |= {name: replace(loads[name], rate=rate) for name in AT_A_QUARTER if name in loads}
            if "local" in loads:
                loads["local"] = replace(loads["local"], parts=options.parts)
            print(f"quarter: {rate} a second", file=sys.stderr)
        if options.slow:
            rate = int(options.size / seconds_alone(place) / options.slow)
            print(f"target: {rate / (1 << 20):.0f} MiB/s", file=sys.stderr)
            drop(place.target)
            slow = stack.enter_context(slow_device(folder, options.size, rate))
            memory = str(options.size * 3 // 2)
            serve = ("--sidefile-memory", memory, "--max-session-memory", memory)
            place = Place(volume, slow, folder, options.size, options.idle, serve)
        rows = [Row(load, system) for load in loads.values() for system in systems]
        for number in range(options.rounds):
            turn = number * len(rows) // options.rounds
            for row in [*rows[turn:], *rows[:turn]]:
                row.runs.append(found := run(row.load, row.system, place))
                print(
                    f"  round {number + 1}: {row.load.name}, {row.system}: "
                    f"{found.during.iops:.0f} of {found.alone.iops:.0f} IOPS, "
                    f"p99 {found.during.p99:.0f} of {found.alone.p99:.0f} us, {found.seconds:.1f} s",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    print(table(rows))
    if options.json:
        document = [
            {"load": asdict(row.load), "system": row.system, "runs": [asdict(run) for run in row.runs]} for row in rows
        ]
        Path(options.json).write_text(
            json.dumps({"size": options.size, "slow": options.slow, "rows": document}, indent=1)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
