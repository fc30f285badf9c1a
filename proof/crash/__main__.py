"""`python -m proof.crash [PREFIX...]`: the table of the sweep. Exit code 1 when something was not as promised."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from proof.crash import package
from proof.crash.case import Case, Outcome, all_cases, run
from proof.crash.steps import WHO

WIDTH = 17


def main(prefixes: list[str]) -> int:
    """Run the cases whose steps' names begin with one of the prefixes; print a line a step."""
    cases = [case for case in all_cases() if not prefixes or case.step.name.startswith(tuple(prefixes))]
    built = package.build()
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for kind, of_kind in groupby(cases, lambda case: case.kind):
        print(f"\n{kind:<20} {'step':<50} " + " ".join(f"{who + ' dies':<{WIDTH}}" for who in WHO))
        for step, of_step in groupby(of_kind, lambda case: case.step):
            row = {outcome.case.who: outcome for outcome in _each(of_step, built)}
            outcomes += row.values()
            cells = " ".join(f"{_cell(row[who]) if who in row else '':<{WIDTH}}" for who in WHO)
            print(f"{step.name:<20} {step.what:<50} {cells}", flush=True)
    bad = [outcome for outcome in outcomes if outcome.problem]
    for outcome in bad:
        print(f"\n{outcome.case.name}: {outcome.problem}")
    print(f"\n{len(outcomes)} cases in {time.monotonic() - began:.0f} s, {len(bad)} not as promised")
    return bool(bad)


def _each(cases: Iterator[Case], built: Path) -> Iterator[Outcome]:
    for case in cases:
        folder = Path(tempfile.mkdtemp(prefix="crash-"))
        try:
            yield run(case, folder, built)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _cell(outcome: Outcome) -> str:
    return "FAILED" if outcome.problem else outcome.result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
