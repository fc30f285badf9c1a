"""What the sweep does at a step: backups (of one volume, of two, of one whose sidefile is too small), images, prune."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from proof.crash.case import RATE, SLOW, again, die, end, go_on
from proof.crash.steps import MOVER, SUBSYSTEM, Step
from proof.crash.world import TIMEOUT, World, expect

#: What an image is restored or copied over.
OLD = b"what was there before"

# ---- backup ----


def backup(world: World, step: Step, who: str) -> str:
    stop = who != step.at
    world.serve(step.name if step.at == SUBSYSTEM else "", stop=stop)
    world.write()
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


def puncture(world: World, step: Step, who: str) -> str:
    """The sidefile is too small for a copy this slow. Afterwards it is large enough again."""
    world.serve(step.name, stop=who != step.at, sidefile="256K")
    world.write()
    before = time.monotonic_ns()
    die(world, world.backup("--rate", "256K"), step, who)
    go_on(world)
    expect(not world.listed(), "a recovery point is listed")
    if who == MOVER:
        world.rest()
        world.settle()
        world.stop_server()
        world.serve()
        world.write()
    world.prune()
    again(world, [], (before, time.monotonic_ns()))
    end(world)
    return "no point"


# ---- an image ----


def copy(world: World, step: Step, who: str) -> str:
    target = world.folder / "copy.img"
    target.write_bytes(OLD)
    world.serve()
    world.write()
    words = ["copy", "--control", world.control, "--chunk-size", "64K", "--force", "data", target]
    before = time.monotonic_ns()
    die(world, world.start(*words, *RATE, point=step.name, stop=who != step.at), step, who)
    window = before, time.monotonic_ns()
    go_on(world)
    is_new = judge_image(world, target, who in step.stays, window)
    before = time.monotonic_ns()
    world.succeed(*words)
    world.explain({"data": target.read_bytes()}, (before, time.monotonic_ns()))
    end(world)
    return "whole image" if is_new else "old image"


def judge_image(world: World, target: Path, stays: bool, window: tuple[int, int]) -> bool:
    content = target.read_bytes()
    is_new = content != OLD
    expect(is_new == stays, f"the image is {'new' if is_new else 'old'}")
    if is_new:
        world.explain({"data": content}, window)
    return is_new


def restore(world: World, step: Step, who: str) -> str:
    target = world.folder / "copy.img"
    target.write_bytes(OLD)
    world.succeed("backup", "--repo", world.repository, f"data={world.image}")
    window = (0, time.monotonic_ns())
    words = ["restore", "--repo", world.repository, "--force", "latest/data", target]
    die(world, world.start(*words, point=step.name), step, who)
    is_new = judge_image(world, target, who in step.stays, window)
    world.prune()  # it is not locked by the dead
    world.succeed(*words)
    world.explain({"data": target.read_bytes()}, window)
    return "whole image" if is_new else "old image"


# ---- prune ----


def prune(world: World, step: Step, who: str) -> str:
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
