"""A case of the sweep with a restore of files to a directory, some of which are there, with --force.

Every file is what it was or what it is to be, as a whole and with its metadata, and has no other name; the same command
again restores all of them, and removes what may lie beside them.

Needs root, for the backup: of files on a served volume.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from proof.crash.case import Case, Outcome, die
from proof.crash.files import DISK, mounted
from proof.crash.steps import MOVER, TREE
from proof.crash.world import TIMEOUT, World, WrongError, expect

DIRECTORIES, FILES = 3, 8  # files in each
OLD = b"what was there before"

#: What a file is: content, time, mode.
Found = tuple[bytes, int, int]


def all_cases() -> list[Case]:
    """The mover's death at each step."""
    return [Case("tree", step, MOVER) for step in TREE]


def run(case: Case, folder: Path, package: Path) -> Outcome:
    """In a folder of its own, which must be there and empty."""
    began = time.monotonic()
    result = problem = ""
    try:
        with World(folder, package, engine=case.engine) as world:
            result = _run(world, case)
            world.expect_nothing_left()
    except (WrongError, ValueError, OSError, AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:
        problem = f"{type(error).__name__}: {error}"
    return Outcome(case, result, time.monotonic() - began, problem)


def _run(world: World, case: Case) -> str:
    _back_up(world)
    target, whole = world.folder / "target", world.folder / "whole"
    words = ["restore", "--repo", world.repository, "--force", "latest"]
    world.succeed(*words, whole)
    wanted = _found(whole)
    expect(len(wanted) == DIRECTORIES * FILES, f"{len(wanted)} files are in the recovery point")
    for path in list(wanted)[::2]:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(OLD)
    before = _found(target)
    die(world, world.start(*words, target, point=case.step.name), case.step, case.who)
    after = {path: found for path, found in _found(target).items() if not path.name.startswith(".timezero-")}
    for path in wanted:
        expect(
            after.get(path) in (before.get(path), wanted[path]), f"{path} is neither what it was nor what it is to be"
        )
    count = sum(after.get(path) == wanted[path] for path in wanted)
    named = len(wanted) if case.who in case.step.stays else case.step.passes if case.step.point == "tree.named" else 0
    expect(count == named, f"{count} files are new, and {named} were named")
    world.prune()  # it is not locked by the dead
    world.succeed(*words, target)
    expect(_found(target) == wanted, "what the same command leaves is not what it should be")
    return "all files whole" if count == len(wanted) else "files old or whole"


def _back_up(world: World) -> None:
    world.image.write_bytes(bytes(DISK))
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", world.image], check=True, timeout=TIMEOUT)
    world.serve()
    with mounted(world, 1) as point:
        for number in range(DIRECTORIES * FILES):
            path = point / "tree" / str(number % DIRECTORIES) / f"file{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(10_000 * (number + 1)))
            os.utime(path, (number, number))
        world.succeed("backup", "--repo", world.repository, "--control", world.control, f"data:{point}/tree")
    world.stop_server()


def _found(tree: Path) -> dict[Path, Found]:
    """All files below, by their place."""
    found = {}
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            status = path.stat()
            found[path.relative_to(tree)] = path.read_bytes(), status.st_mtime_ns, status.st_mode
    return found
