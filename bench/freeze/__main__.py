"""The freeze of file datasets: one file, 10,000 small ones, one of 100,000 extents; ext4 and xfs on a loop device.

    python -m bench.freeze [--count 9] [--kind KIND]... [--files N] [--extents N] [--directory DIR] [--json FILE]

Needs root. All but the first column lies between freezing and thawing; milliseconds, medians:

    resolve   names, open files, the first look at extents; before anything is suspended, once
    freeze    FIFREEZE after a sync, nothing having been frozen for a while; in brackets: without expedited RCU
    read      facts, names, attributes and extents in C, by itself and thawed; in brackets: on one processor
    map       the concordance, reading included
    domain    the bitmap of tracks
    thaw      FITHAW
    window    all of them, from the beginning of freezing to the end of thawing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from proof.stack import loop_device, mounted
from timezero import _linux
from timezero._linux import files
from timezero.concordance.freezer import Freezer
from timezero.concordance.mapping import map_files
from timezero.concordance.mounts import Mount
from timezero.concordance.selection import Designated, Selection, resolve

SIZE = 8 << 30
TRACK = 16384
PAUSE = 0.25  # seconds: after a freeze, the kernel keeps for a while what makes the next one quick
PARTS = ("freeze", "slow freeze", "read", "read on one", "map", "domain", "thaw", "window")


def fill(point: Path, count: int, extents: int) -> None:
    (point / "one file").write_bytes(b"x" * (1 << 20))
    for number in range(count):
        directory = point / "small files" / str(number // 100)
        if number % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"{number}").write_bytes(b"y" * (4096 + number))
    with (point / "fragments").open("wb", buffering=0) as file:
        for number in range(extents):
            file.seek(number * 8192)
            file.write(b"z" * 4096)
    os.sync()


@contextmanager
def one_processor() -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def timed(begin: float) -> float:
    return (time.perf_counter() - begin) * 1e3


def freeze_once(designated: Designated, point: Path) -> dict[str, float]:
    time.sleep(PAUSE)
    with Freezer([point]) as freezer:
        freezer.sync()
        begin = time.perf_counter()
        freezer.freeze(10)
        frozen = timed(begin)
        at = time.perf_counter()
        concordance = map_files(designated)
        mapped = timed(at)
        at = time.perf_counter()
        concordance.domain("data", TRACK, SIZE // TRACK)
        domain = timed(at)
        at = time.perf_counter()
        freezer.thaw()
        return {"freeze": frozen, "map": mapped, "domain": domain, "thaw": timed(at), "window": timed(begin)}


def slow_freeze(point: Path) -> float:
    """Without the watchdog, and so with RCU as it is."""
    time.sleep(PAUSE)
    descriptor = os.open(point, os.O_RDONLY)
    try:
        os.sync()
        begin = time.perf_counter()
        _linux.freeze(descriptor)
        return timed(begin)
    finally:
        _linux.thaw(descriptor)
        os.close(descriptor)


def read_once(designated: Designated) -> float:
    begin = time.perf_counter()
    files.read_files([d.fd for d in designated], [os.fsencode(d.path) for d in designated])
    return timed(begin)


def measure(designated: Designated, point: Path, count: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(count):
        for part, value in freeze_once(designated, point).items():
            samples[part].append(value)
        samples["slow freeze"].append(slow_freeze(point))
        samples["read"].append(read_once(designated))
        with one_processor():
            samples["read on one"].append(read_once(designated))
    return {part: float(np.median(values)) for part, values in samples.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", default=9, type=int, help="freezes of each case")
    parser.add_argument("--kind", action="append", default=[], choices=["ext4", "xfs"])
    parser.add_argument("--files", default=10_000, type=int)
    parser.add_argument("--extents", default=100_000, type=int)
    parser.add_argument("--directory", default=".", help="where the sparse image lies")
    parser.add_argument("--json", default=None)
    options = parser.parse_args(arguments)
    document = []
    titles = {"files": 7, "extents": 9, "resolve": 9, "freeze": 15, "read": 15, "map": 7, "domain": 8, "thaw": 7}
    print(" " * 18 + "".join(f"{title:>{width}}" for title, width in titles.items()) + "  window")
    for kind in options.kind or ["ext4", "xfs"]:
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=options.directory))
            )
            with (folder / "image").open("wb") as image:
                image.truncate(SIZE)
            subprocess.run([f"mkfs.{kind}", "-q", folder / "image"], check=True)
            device = stack.enter_context(loop_device(folder / "image"))
            point = stack.enter_context(mounted(device, folder / "mounted"))
            fill(point, options.files, options.extents)
            mount = Mount("data", str(point), os.stat(point).st_dev, kind, 0, os.statvfs(point).f_bsize, False)
            for what in ("one file", "small files", "fragments"):
                begin = time.perf_counter()
                with resolve([Selection("data", str(point / what))], [mount]) as designated:
                    resolved = timed(begin)
                    extents = len(files.read_files([d.fd for d in designated]).logical)
                    row = measure(designated, point, options.count) | {"resolve": resolved}
                    document.append({"kind": kind, "case": what, "files": len(designated), "extents": extents, **row})
                print(
                    f"{kind + ' ' + what:<18}{document[-1]['files']:>7}{extents:>9}{resolved:>9.1f}"
                    f"{row['freeze']:>7.2f} ({row['slow freeze']:>5.1f})"
                    f"{row['read']:>7.2f} ({row['read on one']:>5.1f})"
                    f"{row['map']:>7.2f}{row['domain']:>8.2f}{row['thaw']:>7.2f}{row['window']:>8.2f}",
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
