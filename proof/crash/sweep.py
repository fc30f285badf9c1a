"""All cases of the sweep, and how they are run. The I/O engines take turns, so that each has half of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from proof.crash import files, in_place, kinds, trees
from proof.crash.case import Case, Outcome
from proof.crash.steps import BACKUP, COPY, DELTA, MOVER, PAIR, PRUNE, PUNCTURE, RESTORE, RESUME, WHO, Step
from proof.crash.world import World, WrongError

ENGINES = ("auto", "threads")

_Kind = Callable[[World, Step, str], str]
#: Steps, who may die at them, the volumes that are served, and what is done.
_KINDS: dict[str, tuple[Sequence[Step], Sequence[str], Sequence[str], _Kind]] = {
    "backup": (BACKUP, WHO, ("data",), kinds.backup),
    "pair": (PAIR, WHO, ("data", "more"), kinds.backup),
    "puncture": (PUNCTURE, WHO, ("data",), kinds.puncture),
    "copy": (COPY, WHO, ("data",), kinds.copy),
    "restore": (RESTORE, (MOVER,), ("data",), kinds.restore),
    "delta": (DELTA, (MOVER,), ("data",), in_place.delta),
    "resume": (RESUME, (MOVER,), ("data",), in_place.resume),
    "prune": (PRUNE, (MOVER,), ("data",), kinds.prune),
}
#: The same of those that need root, and no other case beside them: they mount something.
_ROOT = {"files": files.run, "tree": trees.run}


def all_cases() -> list[Case]:
    """Everything, in the order of the table."""
    cases = [Case(kind, step, who) for kind, (steps, whose, _, _) in _KINDS.items() for step in steps for who in whose]
    cases += files.all_cases() + trees.all_cases()
    return [replace(case, engine=ENGINES[number % len(ENGINES)]) for number, case in enumerate(cases)]


def needs_root(case: Case) -> bool:
    """Does it mount something?"""
    return case.kind in _ROOT


def run(case: Case, folder: Path, package: Path) -> Outcome:
    """In a folder of its own, which must be there and empty."""
    if needs_root(case):
        return _ROOT[case.kind](case, folder, package)
    began = time.monotonic()
    result = problem = ""
    _, _, volumes, act = _KINDS[case.kind]
    try:
        with World(folder, package, engine=case.engine, volumes=volumes) as world:
            result = act(world, case.step, case.who)
            world.expect_nothing_left()
    except (WrongError, ValueError, OSError, AssertionError, subprocess.TimeoutExpired) as error:
        problem = f"{type(error).__name__}: {error}"
    return Outcome(case, result, time.monotonic() - began, problem)


def run_all(cases: Sequence[Case], folder: Path, package: Path) -> Iterator[Outcome]:
    """In their order, as many at a time as there are processors; what needs root one by one. folder: for theirs."""

    def run_one(numbered: tuple[int, Case]) -> Outcome:
        number, case = numbered
        own = folder / str(number)
        own.mkdir()
        try:
            return run(case, own, package)
        finally:
            if not needs_root(case):  # something may be mounted there
                shutil.rmtree(own, ignore_errors=True)

    numbered = list(enumerate(cases))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(run_one, [each for each in numbered if not needs_root(each[1])])
    yield from map(run_one, [each for each in numbered if needs_root(each[1])])
