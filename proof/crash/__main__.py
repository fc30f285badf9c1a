"""The table of the crash sweep. Exit code 1 when something was not as promised, 2 when a name is of no case."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from proof.crash import package, sweep
from proof.crash.case import Case, Outcome
from proof.crash.steps import WHO

WIDTH = 17


def main(names: list[str]) -> int:
    """Run the cases that the names choose, all without any; a line a step."""
    is_root = os.geteuid() == 0
    everything = sweep.all_cases()
    for name in names:
        if not any(_is_of(case, name) for case in everything):
            print(f"proof.crash: {name}: no step's name begins so, and no kind of case is called so", file=sys.stderr)
            return 2
    chosen = [case for case in everything if not names or any(_is_of(case, name) for name in names)]
    cases = [case for case in chosen if is_root or not sweep.needs_root(case)]
    if not cases:
        print(f"proof.crash: {', '.join(names)}: all of these cases need root", file=sys.stderr)
        return 2
    built = package.build()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    try:
        outcomes = list(_print(sweep.run_all(cases, folder, built)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    bad = [outcome for outcome in outcomes if outcome.problem]
    for outcome in bad:
        print(f"\n{outcome.case.name}: {outcome.problem}")
    if len(cases) < len(chosen):
        print("\nleft out, for they need root: files on served volumes")
    print(f"\n{len(outcomes)} cases in {time.monotonic() - began:.0f} s, {len(bad)} not as promised")
    return bool(bad)


def _is_of(case: Case, name: str) -> bool:
    return case.step.name.startswith(name) or case.kind == name


def _print(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    for kind, of_kind in groupby(outcomes, lambda outcome: outcome.case.kind):
        print(f"\n{kind:<20} {'step':<50} " + " ".join(f"{who + ' dies':<{WIDTH}}" for who in WHO))
        for step, of_step in groupby(of_kind, lambda outcome: outcome.case.step):
            row = {outcome.case.who: outcome for outcome in of_step}
            yield from row.values()
            cells = " ".join(f"{_cell(row[who]) if who in row else '':<{WIDTH}}" for who in WHO)
            print(f"{step.name:<20} {step.what:<50} {cells}", flush=True)


def _cell(outcome: Outcome) -> str:
    return "FAILED" if outcome.problem else outcome.result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m proof.crash", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the beginning of a step's name, or a kind of case")
    sys.exit(main(parser.parse_args().names))
