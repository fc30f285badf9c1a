"""4k random writes at depth 4 over NBD while a full backup runs: what the application keeps, and how long it takes.

    python -m bench.intercept [--quick] [--size 4G] [--rounds 3] [--only TEXT]... [--memory] [--directory DIR]
                              [--json FILE]

Points: timezero at its default (gives way), at full speed, over depths, sizes and rates; qemu-storage-daemon's backup
job at its defaults and tuned; tracks and tiers; a fixed rate of 500 updates a second. Every round runs each point once,
in an order that rotates; medians. Volume and target are files in one directory, so on one disk; --memory: both are loop
devices over memory. --quick: 1 GiB, two rounds, the points that matter most; --only: the points whose name has TEXT.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.copy.sources import make_source, size_of
from bench.intercept import points, report
from bench.intercept.points import Place, Point
from bench.intercept.systems import Punctured
from proof.stack import loop_device


def place_for(stack: ExitStack, options: argparse.Namespace) -> Place:
    """Volume with content, and room for the target; gone at the end."""
    base = "/dev/shm" if options.memory else Path(options.directory or ".").resolve()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timezero-bench-", dir=base)))
    volume, target = folder / "volume.img", folder / "target.img"
    make_source(volume, options.size)
    if options.memory:
        make_source(target, options.size)  # written once: first touch of memory is no part of the figures
        volume = stack.enter_context(loop_device(volume))
        target = stack.enter_context(loop_device(target))
    return Place(volume, target, folder, options.size)


def chosen(options: argparse.Namespace, folder: Path) -> list[Point]:
    every = [*points.baselines(), *points.curve(options.quick)]
    if not options.quick:
        every += points.variants(folder)
    every += points.paced()
    if not shutil.which("qemu-storage-daemon"):
        print("not measured, not installed: qemu-storage-daemon", file=sys.stderr)
        every = [p for p in every if p.system is points.Timezero]
    # Without their baselines the rest would have nothing to be compared with.
    keep = [p for p in every if not options.only or "no backup" in p.name or "alone" in p.name
            or any(text in p.name for text in options.only)]  # fmt: skip
    return [p for p in keep if p.load != "paced" or not options.no_paced]


def measure(every: list[Point], place: Place, rounds: int) -> None:
    for number in range(rounds):
        turn = number * len(every) // rounds
        for point in [*every[turn:], *every[:turn]]:
            sample = None
            try:
                sample = points.run(point, place)
                point.samples.append(sample)
            except Punctured:
                point.punctured += 1
            print(f"  round {number + 1}: {report.line(point, sample)}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", default=None, type=size_of)
    parser.add_argument("--rounds", default=None, type=int)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--no-paced", action="store_true", help="leave the fixed rate out")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--directory", default=None)
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    options.size = options.size or size_of("1G" if options.quick else "4G")
    rounds = options.rounds or (2 if options.quick else 3)
    with ExitStack() as stack:
        place = place_for(stack, options)
        every = chosen(options, place.folder)
        measure(every, place, rounds)
    print(f"4k random writes over NBD during a full backup of {options.size / (1 << 30):g} GiB, "
          f"{'memory' if options.memory else 'disk'}, {rounds} rounds, medians")  # fmt: skip
    print(report.table(every))
    if options.json:
        document = {"size": options.size, "memory": options.memory, "points": [p.to_json() for p in every]}
        Path(options.json).write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
