"""Suspension of sparse volumes of 1 GiB, 1 TiB and 16 TiB, 1 and 32 in a group: drain, install, open; median and p99.

    python -m bench.suspend [--count 50] [--no-load] [--size SIZE]... [--volumes N]... [--directory DIR] [--json FILE]

The times are the subsystem's own: close (ordering all gates closed), drain (until the last update in flight has
ended), install, open, total (first gate closed to last gate open). Unless --no-load, fio writes 4k at random to
the first volume at depth 4, so that there is something to drain. Preparing takes memory in proportion to the
volumes, and is no part of a suspension; it is shown for its own sake. Groups that take a gigabyte are suspended a
fifth as often.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.intercept.application import Fio
from proof.served import Serving
from timezero import session
from timezero.units import GIB, KIB, MIB, TIB, parse_size

PARTS = ("close_ns", "drain_ns", "install_ns", "open_ns", "total_ns")
SIZES = {"1 GiB": GIB, "1 TiB": TIB, "16 TiB": 16 * TIB - 64 * KIB}  # the largest file of ext4 is a block smaller
TRACK = 64 * KIB
LOADED = 256 * MIB  # bytes of the first volume that fio writes to


@dataclass
class Case:
    """Volumes of one size in one group. samples: nanoseconds of each part; prepare: seconds."""

    size: int
    volumes: int
    samples: list[dict[str, int]] = field(default_factory=list)
    prepare: list[float] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """What a session of one volume is given: bitmaps, an eighth for reads, room for a small sidefile."""
        return self.size // TRACK // 32 * 16 * 5 // 4 + 24 * MIB

    def row(self, name: str) -> str:
        cells = f"{self.volumes:>3} x {name:<8}"
        for part in PARTS:
            median, p99 = np.percentile([sample[part] for sample in self.samples], [50, 99]) / 1e3
            cells += f"{median:>9.0f}{p99:>8.0f}"
        beyond = [sample["total_ns"] - sample["drain_ns"] for sample in self.samples]
        return cells + f"{np.percentile(beyond, 99) / 1e3:>12.0f}{np.median(self.prepare) * 1e3:>12.0f}"


@contextmanager
def serving(case: Case, folder: Path) -> Any:
    """timezero serve over fresh sparse files."""
    words = [
        "--control",
        str(folder / "control.sock"),
        "--nbd",
        f"nbd+unix:///?socket={folder / 'nbd.sock'}",
        "--quiet",
    ]
    words += ["--sidefile-memory", str(case.memory), "--max-session-memory", str(case.memory * case.volumes)]
    for number in range(case.volumes):
        with (folder / f"{number}.img").open("wb") as file:
            file.truncate(case.size)
        words += ["--volume", f"v{number}={folder / f'{number}.img'}"]
    try:
        with Serving(words, folder / "serve.log"):
            yield
    finally:
        for path in folder.glob("*.img"):
            path.unlink()


def measure(case: Case, count: int, *, load: bool) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timezero-bench-")))
        stack.enter_context(serving(case, folder))
        application = None
        if load:
            uri = f"nbd+unix:///v0?socket={folder / 'nbd.sock'}"
            application = stack.enter_context(Fio(uri, LOADED, folder))
        names = [f"v{number}" for number in range(case.volumes)]
        for _ in range(count):
            begin = time.perf_counter()
            with session.prepare(str(folder / "control.sock"), names, track_size=TRACK) as group:
                case.prepare.append(time.perf_counter() - begin)
                case.samples.append(group.suspend())
        if application:
            application.stop()


def header() -> str:
    cells = f"{'':<14}" + "".join(f"{part.removesuffix('_ns') + ' us':>9}{'p99':>8}" for part in PARTS)
    return cells + f"{'beyond drain':>14}{'prepare ms':>12}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", default=50, type=int, help="suspensions of each case")
    parser.add_argument("--no-load", action="store_true")
    parser.add_argument("--size", action="append", default=[], metavar="SIZE")
    parser.add_argument("--volumes", action="append", default=[], type=int, metavar="N")
    parser.add_argument("--directory", default=None, help="where the sparse files lie")
    parser.add_argument("--json", default=None)
    options = parser.parse_args(arguments)
    tempfile.tempdir = str(Path(options.directory or ".").resolve())
    sizes = {text: parse_size(text) for text in options.size} or SIZES
    cases = {}
    for name, size in sizes.items():
        for volumes in options.volumes or [1, 32]:
            case = cases[name, volumes] = Case(size, volumes)
            # Terabytes of volumes take gigabytes of memory to be prepared each time, seconds of it.
            count = options.count if case.memory * case.volumes < GIB else max(1, options.count // 5)
            measure(case, count, load=not options.no_load)
            print(f"  {volumes} x {name}: done", file=sys.stderr, flush=True)
    print(f"suspension, {options.count} times each, {'idle' if options.no_load else 'under 4k random writes'}; "
          "medians and p99 in us, p99 beyond draining, prepare apart")  # fmt: skip
    print(header())
    for (name, _), case in cases.items():
        print(case.row(name))
    if options.json:
        rows = [{"size": c.size, "volumes": c.volumes, "samples": c.samples, "prepare_s": c.prepare}
                for c in cases.values()]  # fmt: skip
        Path(options.json).write_text(json.dumps({"load": not options.no_load, "cases": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
