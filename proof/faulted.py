"""The T0 oracle under faults: errors, delays and short transfers below server and mover, kills, stops, restarts, and
sidefiles that overflow, drawn at random. A run ends with exactly T0, or with nothing; never with anything else.

    python -m proof.faulted --runs 1000 --seed 1 --jobs 2

A run is told by its seed: `--runs 1 --seed N` plans it again (the machine decides what happens in which order). Seeds
of runs that ever went wrong are kept in proof/faulted.seeds, and run by the tests.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from proof.faultplan import draw
from proof.faultrun import Report, Run, Server
from proof.load import build

SEEDS = Path(__file__).with_name("faulted.seeds")


def kept_seeds() -> list[int]:
    """Seeds of runs that went wrong once."""
    lines = SEEDS.read_text().splitlines() if SEEDS.exists() else []
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


class Runner:
    """Does runs one after the other, with a server for each engine and place. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blockload = build(folder)
        self._servers: dict[tuple[str, bool], Server] = {}
        self._stack = ExitStack()

    def run(self, seed: int, *, keep: bool = False) -> Report:
        """The run of a seed. keep: its files, when it went wrong."""
        plan = draw(seed)
        server = self._server(plan.engine, plan.in_memory)
        run = Run(plan, server, self.blockload, self.folder / f"run-{seed}-{time.monotonic_ns()}")
        report = run.run()
        if not (keep and report.wrong):
            run.discard()
        return report

    def _server(self, engine: str, in_memory: bool) -> Server:
        key = engine, in_memory
        if key not in self._servers:
            folder = self.folder / f"server-{engine}-{'memory' if in_memory else 'disk'}"
            place = folder / "volume"
            if in_memory:
                place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))) / "volume"
            self._servers[key] = server = Server(folder, place, engine)
            self._stack.callback(server.stop)  # each, whatever becomes of the others
        return self._servers[key]

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _work(folder: Path, seeds: Iterable[int], keep: bool, reports: multiprocessing.Queue[Report | None]) -> None:
    folder.mkdir()
    try:
        with Runner(folder) as runner:
            for seed in seeds:
                reports.put(runner.run(seed, keep=keep))
    finally:
        reports.put(None)


def main() -> int:
    """The command line; 1 when a run went wrong."""
    parser = argparse.ArgumentParser(prog="python -m proof.faulted", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first run; the others follow")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time")
    parser.add_argument("--keep", action="store_true", help="the files of runs that went wrong")
    parser.add_argument("--verbose", action="store_true", help="a line for every run")
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.keep:
            folder = Path(tempfile.mkdtemp(prefix="faulted-"))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faulted-")))
        reports: multiprocessing.Queue[Report | None] = multiprocessing.Queue()
        seeds = range(options.seed, options.seed + options.runs)
        workers = [
            multiprocessing.Process(
                target=_work, args=(folder / str(job), seeds[job :: options.jobs], options.keep, reports)
            )
            for job in range(options.jobs)
        ]
        for worker in workers:
            worker.start()
        found = _collect(reports, workers, options.verbose)
        if options.keep and found["WRONG"]:
            print(f"files: {folder}")
    missing = options.runs - sum(found.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in found.most_common()), end="")
    print(f", {missing} did not come about" if missing else "")
    return 1 if found["WRONG"] or missing else 0


def _collect(
    reports: multiprocessing.Queue[Report | None], workers: list[multiprocessing.Process], verbose: bool
) -> Counter[str]:
    found: Counter[str] = Counter()
    by_fault: dict[str, Counter[str]] = {}
    ended = 0
    while ended < len(workers):
        try:
            report = reports.get(timeout=1)
        except queue.Empty:  # one that was killed says nothing any more
            if any(worker.is_alive() for worker in workers):
                continue
            break
        if report is None:
            ended += 1
            continue
        found[report.outcome] += 1
        names = report.plan.names or ("no fault",)
        for name in names:
            by_fault.setdefault(name, Counter())[report.outcome] += 1
        if verbose or report.wrong:
            print(f"seed {report.plan.seed}: {', '.join(names)}: {report.outcome} {report.err}", flush=True)
        if report.wrong:
            print(*(f"    {what}" for what in report.wrong), f"    {report.plan}", sep="\n", flush=True)
            with SEEDS.open("a") as file:
                file.write(f"{report.plan.seed} {' '.join(names)}\n")
        elif sum(found.values()) % 100 == 0:
            print(f"{sum(found.values())} runs: {dict(found)}", file=sys.stderr, flush=True)
    for name, outcomes in sorted(by_fault.items()):
        print(f"{name:16} " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    return found


if __name__ == "__main__":
    os.environ.pop("TIMEZERO_CONTROL", None)
    sys.exit(main())
