"""A case of the sweep: somebody dies at a step; then everything is started again and looked at.

Application: what it had acknowledged is there; where its server lived on, it noticed nothing. Result: a whole one where
the step promises one (of one instant, and it verifies), else none. Leavings: prune removes them, the repository's tree
is what its manifests say. Nothing is left: no session, lock, listener, mount or process. The next backup works.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass

from proof.crash.steps import BOTH, MOVER, SUBSYSTEM, Step
from proof.crash.world import TIMEOUT, World, expect, is_stopped, wait_for
from proof.words import after_the_estimate

#: A quarter of a second. Giving way to the applications it may be two, and then they have overwritten nearly all, and
#: hardly a chunk is read from the volume any more.
RATE = ("--rate", "32M", "--mode", "full")
#: Where an application has to come to a step: nobody waits for the end of this one, and a busy machine may be slow.
SLOW = ("--rate", "2M")
FAILED = (1, 4, 5)  # exit codes of a job whose subsystem died


@dataclass(frozen=True)
class Case:
    """A step and who dies at it. engine: for the I/O of all that runs."""

    kind: str
    step: Step
    who: str
    engine: str = "auto"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.step.name}-{self.who}-{self.engine}"


@dataclass
class Outcome:
    """What came of a case. problem: what was not as promised; empty when all was."""

    case: Case
    result: str
    seconds: float
    problem: str = ""


# ---- the death ----


def die(world: World, job: subprocess.Popen[str], step: Step, who: str) -> None:
    """Wait for the step and let die who has to; the job's end, and whether it ends as it should."""
    here = job if step.at == MOVER else world.server
    assert here
    if who == step.at:
        wait_for(lambda: here.poll() is not None or _over(job), f"{step.name} was not reached")
        with suppress(subprocess.TimeoutExpired):  # the job sees the server's socket close before that is over
            here.wait(10)
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
        expect("Traceback" not in err and after_the_estimate(err).count("\n") <= 1, f"the job says {err.strip()}")


def _over(job: subprocess.Popen[str]) -> bool:
    """Has the job ended without anybody's death?"""
    return job.poll() is not None and job.returncode >= 0


def _told(job: subprocess.Popen[str]) -> str:
    return job.communicate(timeout=TIMEOUT)[1].strip() if job.poll() is not None else "the job runs on"


def go_on(world: World) -> None:
    """The applications after the death: they go on, or find what was acknowledged when they are served again."""
    if world.is_served:
        for application in world.applications.values():
            before = application.updates
            wait_for(lambda: application.updates > before + 20, "an application stands still")  # noqa: B023
        expect(world.writes, "an application was hung up on")
        wait_for(lambda: not world.sessions(), "the subsystem keeps the session", 10)
        return
    world.rest()
    world.serve()
    world.settle()
    world.write()


def end(world: World) -> None:
    """Once more what was acknowledged, and a clean end."""
    expect(world.writes, "an application was hung up on")
    world.rest()
    world.settle()
    world.stop_server()


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
        world.explain(world.restore(point), within)
    world.prune()
