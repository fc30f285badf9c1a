"""A case of the sweep: somebody dies at a step; then everything is started again and looked at.

Application: what it had acknowledged is there; where its server lived on, it noticed nothing. Result: a whole one where
the step promises one (of one instant, and it verifies), else none. Leavings: prune removes them, the repository's tree
is what its manifests say. Nothing is left: no session, lock, listener, mount or process. The next backup works.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from proof.crash.steps import BACKUP, BOTH, COPY, MOVER, PRUNE, RESTORE, SUBSYSTEM, WHO, Step
from proof.crash.world import TIMEOUT, World, WrongError, expect, is_stopped, wait_for

RATE = ("--rate", "32M")
#: Where an application has to come to a step: nobody waits for the end of this one, and a busy machine may be slow.
SLOW = ("--rate", "2M")
FAILED = (1, 4, 5)  # exit codes of a job whose subsystem died


@dataclass(frozen=True)
class Case:
    """A step and who dies at it."""

    kind: str
    step: Step
    who: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.step.name}-{self.who}"


@dataclass
class Outcome:
    """What came of a case. problem: what was not as promised; empty when all was."""

    case: Case
    result: str
    seconds: float
    problem: str = ""


def all_cases() -> list[Case]:
    """But those of files, which are in files.py."""
    cases = [Case("backup", step, who) for step in BACKUP for who in WHO]
    cases += [Case("copy", step, who) for step in COPY for who in WHO]
    cases += [Case("restore", step, MOVER) for step in RESTORE]
    return cases + [Case("prune", step, MOVER) for step in PRUNE]


def run(case: Case, folder: Path, package: Path) -> Outcome:
    """In a folder of its own, which must be there and empty."""
    began = time.monotonic()
    result = problem = ""
    try:
        with World(folder, package) as world:
            result = _KINDS[case.kind](world, case.step, case.who)
            world.expect_nothing_left()
    except (WrongError, ValueError, OSError, AssertionError, subprocess.TimeoutExpired) as error:
        problem = f"{type(error).__name__}: {error}"
    return Outcome(case, result, time.monotonic() - began, problem)


def run_all(cases: Sequence[Case], folder: Path, package: Path) -> Iterator[Outcome]:
    """In their order; as many at a time as there are processors. folder: for theirs."""

    def run_one(numbered: tuple[int, Case]) -> Outcome:
        number, case = numbered
        own = folder / str(number)
        own.mkdir()
        try:
            return run(case, own, package)
        finally:
            shutil.rmtree(own, ignore_errors=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(run_one, enumerate(cases))


# ---- the death ----


def die(world: World, job: subprocess.Popen[str], step: Step, who: str) -> None:
    """Wait for the step and let die who has to; the job's end, and whether it ends as it should."""
    here = job if step.at == MOVER else world.server
    assert here
    if who == step.at:
        wait_for(lambda: here.poll() is not None or _over(job), f"{step.name} was not reached")
        expect(here.poll() == -signal.SIGKILL, f"{step.name} was not reached")
    else:
        wait_for(lambda: is_stopped(here) or _over(job), f"{step.name} was not reached")
        expect(is_stopped(here), f"{step.name} was not reached: {_told(job)}")
        if who in (SUBSYSTEM, BOTH):
            world.kill_server()
        if who in (MOVER, BOTH):
            job.kill()
        if here.poll() is None:
            here.send_signal(signal.SIGCONT)
    _, err = job.communicate(timeout=TIMEOUT)
    if who == SUBSYSTEM:
        wanted = (0,) if SUBSYSTEM in step.stays else FAILED
        expect(job.returncode in wanted, f"the job ends with {job.returncode}: {err.strip()}")
        errors = [line for line in err.strip().splitlines() if not line.startswith("timezero: estimate:")]
        expect("Traceback" not in err and len(errors) <= 1, f"the job says {err.strip()}")


def _over(job: subprocess.Popen[str]) -> bool:
    """Has the job ended without anybody's death?"""
    return job.poll() is not None and job.returncode >= 0


def _told(job: subprocess.Popen[str]) -> str:
    return job.communicate(timeout=TIMEOUT)[1].strip() if job.poll() is not None else "the job runs on"


def go_on(world: World) -> None:
    """The application after the death: it goes on, or finds what was acknowledged when its volume is served again."""
    application = world.application
    if world.is_served:
        before = application.updates
        wait_for(lambda: application.updates > before + 20, "the application stands still")
        expect(application.alive, "the application was hung up on")
        wait_for(lambda: not world.sessions(), "the subsystem keeps the session", 10)
        return
    application.stop()
    world.serve()
    application.settle(world.volume())
    application.start(world.nbd, "data")


def end(world: World) -> None:
    """Once more what was acknowledged, and a clean end."""
    expect(world.application.alive, "the application was hung up on")
    world.application.stop()
    world.application.settle(world.volume())
    world.stop_server()


# ---- backup ----


def _backup(world: World, step: Step, who: str) -> str:
    stop = who != step.at
    world.serve(step.name if step.at == SUBSYSTEM else "", stop=stop)
    world.application.start(world.nbd, "data")
    before = time.monotonic_ns()
    rate = SLOW if step.at == SUBSYSTEM and step.point != "session.over" else RATE
    job = world.backup(*rate, point=step.name if step.at == MOVER else "", stop=stop)
    die(world, job, step, who)
    window = before, time.monotonic_ns()
    go_on(world)
    points = world.listed()
    expect(len(points) == (who in step.stays), f"{len(points)} recovery points are listed")
    if (world.repository / "repository.json").exists():
        world.prune()
    again(world, points, window)
    end(world)
    return "whole point" if points else "no point"


def again(world: World, points: list[str], window: tuple[int, int]) -> None:
    """A new backup works. It and the one that was listed before, if any, are whole, and each of an instant."""
    before = time.monotonic_ns()
    job = world.backup()
    _, err = job.communicate(timeout=TIMEOUT)
    expect(job.returncode == 0, f"the next backup ends with {job.returncode}: {err.strip()}")
    windows = [window] * len(points) + [(before, time.monotonic_ns())]
    listed = world.listed()
    expect(listed[:-1] == points and len(listed) == len(windows), f"listed are {listed}, and there were {points}")
    world.verify()
    for point, within in zip(listed, windows, strict=True):
        world.application.explain(world.restore(point), within)
    world.prune()


# ---- an image ----


def _copy(world: World, step: Step, who: str) -> str:
    target = world.folder / "copy.img"
    target.write_bytes(b"what was there before")
    world.serve()
    world.application.start(world.nbd, "data")
    words = ["copy", "--control", world.control, "--chunk-size", "64K", "--force", "data", target]
    before = time.monotonic_ns()
    die(world, world.start(*words, *RATE, point=step.name, stop=who != step.at), step, who)
    window = before, time.monotonic_ns()
    go_on(world)
    is_new = _judge_image(world, target, who in step.stays, window)
    before = time.monotonic_ns()
    world.succeed(*words)
    world.application.explain(target.read_bytes(), (before, time.monotonic_ns()))
    end(world)
    return "whole image" if is_new else "old image"


def _judge_image(world: World, target: Path, stays: bool, window: tuple[int, int]) -> bool:
    content = target.read_bytes()
    is_new = content != b"what was there before"
    expect(is_new == stays, f"the image is {'new' if is_new else 'old'}")
    if is_new:
        world.application.explain(content, window)
    return is_new


def _restore(world: World, step: Step, who: str) -> str:
    target = world.folder / "copy.img"
    target.write_bytes(b"what was there before")
    world.succeed("backup", "--repo", world.repository, f"data={world.image}")
    window = (0, time.monotonic_ns())
    words = ["restore", "--repo", world.repository, "--force", "latest/data", target]
    die(world, world.start(*words, point=step.name), step, who)
    is_new = _judge_image(world, target, who in step.stays, window)
    world.prune()  # it is not locked by the dead
    world.succeed(*words)
    world.application.explain(target.read_bytes(), window)
    return "whole image" if is_new else "old image"


# ---- prune ----


def _prune(world: World, step: Step, who: str) -> str:
    words = ["backup", "--repo", world.repository, f"data={world.image}"]
    for _ in range(2):
        world.succeed(*words)
    dead = world.start(*words, point="mover.moved")
    dead.communicate(timeout=TIMEOUT)
    expect(dead.returncode == -signal.SIGKILL, "mover.moved was not reached")
    points = world.listed()
    die(world, world.start("prune", "--repo", world.repository, "--keep", 1, point=step.name), step, who)
    expect(world.listed() == points[1:], f"listed are {world.listed()}, and {points[1]} should be alone")
    world.verify()
    world.prune()
    world.succeed(*words)
    world.verify()
    expect(world.listed()[:1] == points[1:], "the next backup changes what is listed")
    return "kept point whole"


_KINDS: dict[str, Callable[[World, Step, str], str]] = {
    "backup": _backup,
    "copy": _copy,
    "restore": _restore,
    "prune": _prune,
}
