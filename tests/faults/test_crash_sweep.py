"""The crash sweep (proof/crash): somebody dies at every named step, and what is left is plain and safe.

Here: at every step the death of who is at it, and, at a step of every phase, that of the other one and of both. Which
step of a phase it is makes no difference to the one who lives on (it sees a connection that ends), so the rest of the
table is left to `make crash`, which runs all of it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import timezero
from proof.crash import __main__ as sweeping
from proof.crash import package, steps, sweep
from proof.crash.case import Case
from tests.command import image
from tests.sanitized import not_with_asan

ROOT = Path(package.ROOT)
#: A step of every phase, by who is at it.
PHASES = ("session.memory:1", "gate.drained:1", "image.written:1", "chunk.copied:40", "session.over:1", "mover.ended:1",
          "name.linked:2")  # fmt: skip
#: Of the kinds that have many steps in common with others: what is their own.
OWN = {
    "pair": ("gate.installed:1", "session.over:2"),
    "delta": ("target.stored:60", "place.synced:1"),
    "resume": ("target.stored:60", "target.synced:1"),
    "tree": ("target.linked:1", "tree.named:12"),
}
CALL = re.compile(r"""(?:TZ_CRASH_POINT|\bcrash_point)\("([a-z.]+)"\)""")


def chosen(case: Case) -> bool:
    """Is it in the part that is run here?"""
    if case.kind in OWN:
        return case.who == case.step.at and case.step.name in OWN[case.kind]
    return case.kind in ("files", "puncture") or case.who == case.step.at or case.step.name in PHASES


CASES = [case for case in sweep.all_cases() if chosen(case)]

#: For all that runs that package: under ASan it would be the same test as without, and take many times as long.
runs_it = not_with_asan("the package with crash points is built without it")


@pytest.fixture(scope="session")
def built() -> Path:
    """The package with crash points."""
    return package.build()


@runs_it
@pytest.mark.timeout(900)  # on a busy machine, and the first of them waits for the build
@pytest.mark.parametrize("kind", ["backup", "copy", "restore", "prune", "pair", "puncture", "delta", "resume"])
def test_deaths(kind: str, built: Path, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.kind == kind]
    outcomes = list(sweep.run_all(cases, tmp_path, built))
    assert {o.case.name: o.problem for o in outcomes if o.problem} == {}
    assert len(outcomes) >= (2 if kind in OWN else 3)


@runs_it
@pytest.mark.parametrize("swept", [case for case in CASES if sweep.needs_root(case)], ids=lambda c: c.name)
def test_a_death_with_a_file_system_on_the_served_volume(swept: Case, root: None, built: Path, tmp_path: Path) -> None:
    assert sweep.run(swept, tmp_path, built).problem == ""


def test_both_engines_are_swept() -> None:
    everything = sweep.all_cases()
    for kind in {case.kind for case in everything}:
        assert {case.engine for case in everything if case.kind == kind} == set(sweep.ENGINES), kind
    assert {case.engine for case in CASES} == set(sweep.ENGINES)


def test_the_list_of_steps_is_whole() -> None:
    sources = [
        *ROOT.glob("csrc/*/*.c"),
        *ROOT.glob("src/timezero/**/*.py"),
        *ROOT.glob("src/timezero/_native/*.p[yx][xi]"),
    ]
    there = [name for path in sources for name in CALL.findall(path.read_text())]
    assert sorted(there) == sorted(set(there)), "a point is in two places"
    assert set(there) == {step.point for step in steps.ALL}
    names = [case.name for case in sweep.all_cases()]
    assert len(set(names)) == len(names)
    assert {case.step for case in sweep.all_cases()} == set(steps.ALL)


def test_a_name_that_chooses_nothing_is_no_clean_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweeping.main(["gate.instaled"]) == 2
    assert "gate.instaled" in capsys.readouterr().err


# ---- what is installed has no crash points ----


def backup(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = ["backup", "--repo", folder / "repository", f"data={image(folder / 'data.img', 1 << 20)}"]
    command = [sys.executable, "-m", "timezero", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@runs_it
@pytest.mark.parametrize("point", ["mover.ready:1", "pack.written:1"], ids=["in Python", "in C"])
def test_the_environment_means_nothing_to_what_is_installed(point: str, built: Path, tmp_path: Path) -> None:
    asked = package.environment(built, point)
    (tmp_path / "crash").mkdir()
    assert backup(tmp_path / "crash", asked).returncode == -signal.SIGKILL, "the package with crash points heeds it"
    del asked["PYTHONPATH"]
    done = backup(tmp_path, asked)
    assert done.returncode == 0, done.stderr


def test_nothing_of_it_is_in_what_is_installed(built: Path) -> None:
    def mentions(folder: Path) -> set[str]:
        return {path.name.split(".")[0] for path in folder.rglob("*.so") if b"TIMEZERO_CRASH" in path.read_bytes()}

    assert {"mover_ends", "subsystem"} <= mentions(built / "timezero"), "the search finds what is there"
    installed = Path(timezero.__file__).parent
    assert mentions(installed) == set()
    assert "environ" not in (installed / "_crash.py").read_text()
    assert "TIMEZERO_CRASH_POINTS" not in os.environ
