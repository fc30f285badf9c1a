"""An application over NBD on several volumes, alone and then during one backup of all of them: what it keeps.

    python -m bench.harm.group [--volumes 8]... [--size 2G] [--rate 2000] [--reads 50] [--rounds 3]
                               [--mode opportunistic]... [--directory DIR] [--json FILE]

Each volume is a file of its part of `--size` bytes, and has its own fio with its part of `--rate` 4k requests a second,
`--reads` per cent of them reads, at random instants. Each run starts `timezero serve` anew with all of them, lets the
application run alone for some seconds, and then makes one recovery point of all. p99 is over what the volume had alone:
the median of the volumes, and where it rose most. With the same sum of requests and bytes, the number of volumes is to
make little difference: compare `--volumes 1 --volumes 8`. Medians over rounds; the order rotates. Volumes and
repository are on one disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.copy.sources import make_source, size_of
from bench.harm.__main__ import FIO_SECONDS, SETTLE_SECONDS, STALL_SECONDS
from bench.intercept.application import Figures, Fio
from bench.intercept.systems import EXPORT, PUNCTURED, Punctured, Timezero

MIB = 1 << 20
GIB = 1 << 30
LEAST_RATE = 50  # a second: fewer have no 99th percentile in some seconds
IDLE_SECONDS = 8.0
TIMEOUT = FIO_SECONDS - 60  # fio began before


class Group(Timezero):
    """timezero serve with several volumes, and timezero backup of all of them."""

    def __init__(self, volumes: Sequence[Path], folder: Path) -> None:
        self._names = [EXPORT, *(f"{EXPORT}-{number}" for number in range(1, len(volumes)))]
        words = [
            word
            for name, path in zip(self._names[1:], volumes[1:], strict=True)
            for word in ("--volume", f"{name}={path}")
        ]
        super().__init__(volumes[0], folder, words)

    @property
    def uris(self) -> list[str]:
        return [f"nbd+unix:///{name}?socket={self.socket}" for name in self._names]

    def backup(self, target: Path, settings: Sequence[str]) -> dict[str, Any]:
        command = [sys.executable, "-m", "timezero", "backup", *self._names, "--repo", str(target)]
        command += ["--control", str(self._control), "--json", *settings]
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
        if done.returncode:
            kind = Punctured if done.returncode == PUNCTURED else RuntimeError
            raise kind(f"timezero backup ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@dataclass(frozen=True)
class Run:
    """Both windows, of each volume, and the backup's seconds."""

    alone: list[Figures]
    during: list[Figures]
    seconds: float

    @property
    def kept(self) -> float:
        return sum(f.iops for f in self.during) / sum(f.iops for f in self.alone)

    @property
    def p99(self) -> float:
        """The median of the volumes, x alone."""
        return statistics.median(self._ratios())

    @property
    def worst(self) -> float:
        return max(self._ratios())

    def _ratios(self) -> list[float]:
        return [during.p99 / alone.p99 for alone, during in zip(self.alone, self.during, strict=True)]


@dataclass
class Row:
    """So many volumes, in one mode."""

    volumes: int
    mode: str
    runs: list[Run] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(getattr(run, name) for run in self.runs)

    def line(self) -> str:
        p99 = statistics.median(statistics.median(f.p99 for f in run.alone) for run in self.runs)
        return (
            f"{self.volumes:>3} volumes, {self.mode:<14} kept {self.median('kept'):.0%}, "
            f"p99 x {self.median('p99'):.2f} of {p99:.0f} us "
            f"(worst volume x {self.median('worst'):.2f}), backup {self.median('seconds'):.1f} s"
        )


def run(volumes: Sequence[Path], mode: str, folder: Path, rate: int, reads: int) -> Run:
    """One run. Raises RuntimeError when anything of it failed."""
    repository = folder / "repo"
    shutil.rmtree(repository, ignore_errors=True)
    os.sync()  # neither that nor what was written before is to be seen in the figures
    with ExitStack() as stack:
        server = stack.enter_context(Group(volumes, folder))
        applications = []
        for number, uri in enumerate(server.uris):
            place = folder / f"fio-{number}"
            place.mkdir(exist_ok=True)
            size = volumes[number].stat().st_size
            fio = Fio(uri, size, place, depth=8, seconds=FIO_SECONDS, read_percent=reads, rate=rate // len(volumes))
            applications.append(stack.enter_context(fio))
        time.sleep(SETTLE_SECONDS)
        first = time.time()
        time.sleep(IDLE_SECONDS)
        begin = time.time()
        server.backup(repository, ("--mode", mode))
        end = time.time()
        time.sleep(STALL_SECONDS)
        for application in applications:
            application.stop()
        alone, during = [
            [application.figures(*window) for application in applications] for window in ((first, begin), (begin, end))
        ]
        return Run(alone, during, end - begin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", action="append", default=[], type=int)
    parser.add_argument("--size", default=2 * GIB, type=size_of)
    parser.add_argument("--rate", default=2000, type=int)
    parser.add_argument("--reads", default=50, type=int, metavar="PERCENT")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--mode", action="append", default=[], choices=["opportunistic", "full"])
    parser.add_argument("--directory", default=None)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    counts = options.volumes or [8]
    if min(counts) < 1 or options.rate < max(counts) * LEAST_RATE or options.size < max(counts) * MIB:
        parser.error(f"every volume wants at least 1 MiB and {LEAST_RATE} requests a second")
    if options.rounds < 1 or not 0 <= options.reads <= 100:
        parser.error("--rounds: at least one; --reads: 0 to 100")
    rows = [Row(count, mode) for mode in options.mode or ["opportunistic"] for count in counts]
    base = Path(options.directory or ".").resolve()
    with tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=base) as made:
        folder = Path(made)
        images = {
            count: [
                make_source(folder / f"{count}-{number}.img", options.size // count // MIB * MIB)
                for number in range(count)
            ]
            for count in dict.fromkeys(counts)
        }
        for number in range(options.rounds):
            turn = number * len(rows) // options.rounds
            for row in [*rows[turn:], *rows[:turn]]:
                row.runs.append(run(images[row.volumes], row.mode, folder, options.rate, options.reads))
                print(f"  round {number + 1}: {Row(row.volumes, row.mode, row.runs[-1:]).line()}",
                      file=sys.stderr, flush=True)  # fmt: skip
    for row in rows:
        print(row.line())
    if options.json:
        document = [
            {"volumes": row.volumes, "mode": row.mode, "runs": [asdict(run) for run in row.runs]} for row in rows
        ]
        Path(options.json).write_text(
            json.dumps({"size": options.size, "rate": options.rate, "reads": options.reads, "rows": document}, indent=1)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
