"""timezero's NBD data plane beside qemu-nbd, qemu-storage-daemon (both direct, io_uring) and nbdkit's file plugin.

    python -m bench.serve [--full] [--size 1G] [--seconds S] [--rounds N] [--only disk|memory|gate]... [--apart]
                          [--json FILE]

fio's nbd engine, on a volume in a file on disk and in memory (tmpfs): 4k random reads and writes at depth 1 and 16,
128k sequential ones at depth 16. Rounds alternate; figures are medians, `ratio` says how many times the row's rate
timezero reaches, `noise` how far a row's own rounds lie apart. CPU is the server's time a request. The threads engine
has a row of its own, and so has every --poll-us asked for. At the end the cost of the gate: updates with a session of
which everything is copied, against none, and the gate's own calls by themselves. Without --full it ends in three
minutes and is good for orientation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.serve.gate import LOADS as GATE_LOADS
from bench.serve.gate import calls_ns, measure_gate
from timezero.jobs.bench_serve import (
    LOADS,
    Contender,
    Figures,
    Load,
    alternate,
    as_json,
    measure,
    peers,
    ratio,
    scratch_volume,
    table,
    timezero,
)
from timezero.units import format_size, parse_size

PARTS = ("disk", "memory", "gate")
QUICK = (1.0, 1)  # seconds a run, rounds
FULL = (3.0, 5)
GATE_ROUNDS = 3  # for each round: what is looked for is smaller than what a single run can show
GATE_GIB = (1, 256)  # track bits of one fit the cache, of the other they do not


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def contenders(polls: list[int]) -> list[Contender]:
    rows = [Contender("timezero", timezero()), Contender("timezero, threads", timezero("--engine", "threads"))]
    rows += [Contender(f"timezero, poll {us} us", timezero("--poll-us", str(us))) for us in polls]
    return rows + peers()


def beside(part: str, volume: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    rows = contenders(options.poll_us)
    loads = [load for load in LOADS if options.load in load.name]

    def once(contender: Contender, load: Load) -> Figures:
        return measure(contender, volume, folder, load, options.seconds, apart=options.apart)

    alternate(rows, loads, options.rounds, once, say)
    where = f"{'on disk' if part == 'disk' else 'in memory'}{', fio on a CPU of its own' if options.apart else ''}"
    print(f"\nvolume of {format_size(options.size)} {where}")
    print(table(rows, loads))
    return {"part": part, "results": as_json(rows, loads)}


def gate(volume: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    pair = measure_gate(volume, folder, GATE_ROUNDS * options.rounds, options.seconds, say)
    print(f"\nthe gate, volume of {format_size(options.size)} in memory")
    print(table(pair, GATE_LOADS))
    costs = {load.name: 1 - ratio(*pair, load) for load in GATE_LOADS}
    cpu = {load.name: ratio(*pair, load, "cpu_us") - 1 for load in GATE_LOADS}
    for name in costs:
        print(f"cost of the gate, {name}: {costs[name]:+.1%} of the rate, {cpu[name]:+.1%} CPU a request")
    calls = {}
    for gib in GATE_GIB:
        without, armed = calls_ns(folder, gib).values()
        calls[gib] = [without, armed]
        shares = ", ".join(
            f"{(armed - without) / 1000 / pair[1].median(load, 'cpu_us'):.2%} at {load.name.split(', ')[1]}"
            for load in GATE_LOADS
        )
        print(f"the gate's own calls, {gib} GiB: {without:.0f} ns an update, with a session {armed:.0f}: {shares}")
    return {"part": "gate", "cost": costs, "cpu": cpu, "calls_ns": calls, "results": as_json(pair, GATE_LOADS)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"{FULL[0]:g} s a run, {FULL[1]} rounds")
    parser.add_argument("--size", default="1G", type=parse_size)
    parser.add_argument("--seconds", type=float, help="of one run")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--load", default="", help="only loads whose name has this in it")
    parser.add_argument("--poll-us", action="append", default=[], type=int, help="another row of timezero (repeat)")
    parser.add_argument("--apart", action="store_true", help="fio has a CPU for itself, the server all others")
    parser.add_argument("--disk", default=".", type=Path, help="directory for the volume on disk")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds, rounds = FULL if options.full else QUICK
    options.seconds, options.rounds = options.seconds or seconds, options.rounds or rounds
    options.only = options.only or list(PARTS)
    return options


def main() -> int:
    options = parsed()
    missing = [p for p in ("fio", "qemu-nbd", "qemu-storage-daemon", "nbdkit") if not shutil.which(p)]
    if missing:
        print(f"not installed: {', '.join(missing)}: see `make system-all`", file=sys.stderr)
        return 1
    results = []
    for part in options.only:
        place = options.disk.absolute() if part == "disk" else Path("/dev/shm")
        with (
            tempfile.TemporaryDirectory(prefix="timezero-bench-") as folder,
            scratch_volume(place, options.size) as volume,
        ):
            if part == "gate":
                results.append(gate(volume, Path(folder), options))
            else:
                results.append(beside(part, volume, Path(folder), options))
    if options.json:
        options.json.write_text(
            json.dumps({"size": options.size, "cpus": os.cpu_count(), "kernel": os.uname().release, "parts": results})
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
