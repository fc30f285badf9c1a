"""The T0 oracle: busy volumes are backed up as a group, and one instant must explain every sector of every volume.

Writers are separate processes with logs of their own (proof/blockload.c), the judge knows nothing of timezero
(proof/explain.py). The mover is slowed down, so that most of each volume is overwritten before it is copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from proof.explain import Verdict, explain
from proof.load import Load, build, fill
from timezero import session
from timezero._native.mover import BufferSpace, Mover, Sink, Source

MIB = 1 << 20
SIZE = 64 * MIB
CHUNK = MIB
RATE = 40 * MIB  # bytes a second of the mover, all volumes together: some three seconds of work
NO_VALIDATION = 1 << 16  # TZ_FAULT_NO_VALIDATION
PASS_ALL = 1 << 0
VOLUMES = ("left", "right")


@pytest.fixture(scope="session")
def blockload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("blockload"))


@dataclass
class World:
    """Two served volumes under load."""

    folder: Path
    controls: list[str]
    loads: dict[str, Load]

    def stop(self) -> int:
        """Ends the load; no update may have failed. The number of updates."""
        return sum(int(summary["updates"]) for load in self.loads.values() for summary in load.stop())

    def judge(self, images: dict[str, Path], window: tuple[int, int]) -> Verdict:
        return explain(
            [(image, self.loads[name].volume, self.loads[name].logs) for name, image in images.items()], window
        )


@pytest.fixture
def busy(serve: Callable, blockload: Path, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """busy(engine, load options, apart, **serve options) -> World: served, filled by half, written to at depth.

    apart: each volume by a storage subsystem of its own.
    """
    loads: list[Load] = []

    def start(
        engine: str = "uring", options: dict[str, int] | None = None, apart: bool = False, **serving: object
    ) -> World:
        paths = {name: tmp_path / f"{name}.img" for name in VOLUMES}
        for number, path in enumerate(paths.values()):
            path.touch()
            with path.open("r+b") as file:
                file.truncate(SIZE + 512)  # the last track is short
            fill(blockload, path, number, 0, SIZE // 2)
        env = {"TIMEZERO_IO": engine}
        groups = [{name: path} for name, path in paths.items()] if apart else [paths]
        servers = [serve(group, env=env, **serving) for group in groups]
        world = World(tmp_path, [served.control for served in servers], {})
        for number, name in enumerate(VOLUMES):
            served = servers[number if apart else 0]
            load = Load(blockload, Path(served.nbd_socket), name, number, SIZE, tmp_path, depth=8, seconds=60)
            load.options = {"min": 512, "max": 131072, "grain": 512, "zero": 4, "trim": 4, "fua": 1, **(options or {})}
            loads.append(load)
            world.loads[name] = load.start()
        time.sleep(0.3)
        return world

    yield start
    for load in loads:
        load.kill()


@dataclass
class Backup:
    images: dict[str, Path]
    window: tuple[int, int]  # CLOCK_MONOTONIC, ns: T0 lies inside
    parts: list[dict]
    reports: list[dict]


class Copying:
    """A backup of both volumes into image files, under way. Faults are the mover's, for tests that must fail."""

    def __init__(
        self,
        world: World,
        label: str,
        engine: str,
        track: int,
        faults: int = 0,
        suspend: Callable[[session.Group | session.Federation], object] = lambda group: group.suspend(2_000_000),
        **limits: int,
    ) -> None:
        self.stack = ExitStack()
        self.images = {name: world.folder / f"{label}-{name}.img" for name in VOLUMES}
        self.group = self.stack.enter_context(
            session.prepare_all(world.controls, VOLUMES, track_size=track, **{"memory_bytes": 160 * MIB, **limits})
        )
        space = BufferSpace(CHUNK, 16)
        self.stack.callback(space.close)
        self.mover = Mover(space, engine=engine, rate=RATE, faults=faults)
        self.stack.callback(self.mover.close)
        for part in self.group.parts:
            with self.images[part.volume].open("w+b") as file:
                sink = Sink.image(file.fileno(), part.size, fresh=True)
            self.mover.add(Source.session(part.handles), sink)
        before = time.monotonic_ns()
        suspend(self.group)
        self.window = (before, time.monotonic_ns())
        self.mover.start()

    def finish(self) -> Backup:
        with self.stack:
            assert self.mover.wait(60.0), "the mover hangs"
            reports = [self.mover.report(number) for number in range(len(VOLUMES))]
            assert not any(report["error"] for report in reports), reports
            return Backup(self.images, self.window, self.group.end(), reports)


@pytest.mark.parametrize("track", [4096, 65536])
@pytest.mark.parametrize("engine", ["uring", "threads"])
def test_one_instant_explains_a_group(busy, engine, track):
    world = busy(engine)
    backup = Copying(world, "t0", engine, track).finish()
    assert world.stop() > 1000
    verdict = world.judge(backup.images, backup.window)
    assert verdict.explained, verdict.faults
    assert sum(part["intercepted"] for part in backup.parts) > 50
    assert sum(part["zero_images"] for part in backup.parts) > 0
    assert sum(report["chunks_sidefile"] + report["chunks_mixed"] for report in backup.reports) > 0


def test_one_instant_explains_a_group_over_two_subsystems(busy):
    world = busy(apart=True)
    backup = Copying(world, "t0", "uring", 16384).finish()
    assert world.stop() > 1000
    verdict = world.judge(backup.images, backup.window)
    assert verdict.explained, verdict.faults
    assert {part["volume"] for part in backup.parts} == set(VOLUMES)
    assert all(part["intercepted"] > 20 for part in backup.parts)


def test_two_suspensions_are_not_one_instant(busy):
    """What a coordinator would do that suspends one subsystem after the other."""

    def one_by_one(federation: session.Federation) -> None:
        for group in federation._groups:
            group.suspend(2_000_000)
            time.sleep(0.05)

    world = busy(apart=True)
    backup = Copying(world, "t0", "uring", 16384, suspend=one_by_one).finish()
    world.stop()
    assert not world.judge(backup.images, backup.window).explained


def test_one_instant_explains_a_group_through_the_file_tier(busy, tmp_path):
    (tmp_path / "tier").mkdir()
    world = busy(sidefile_path=tmp_path / "tier", sidefile_file="160M")
    backup = Copying(world, "t0", "uring", 65536, memory_bytes=4 * MIB, file_bytes=100 * MIB).finish()
    world.stop()
    verdict = world.judge(backup.images, backup.window)
    assert verdict.explained, verdict.faults
    assert all(part["file_images"] > 50 for part in backup.parts), backup.parts


def test_two_sessions_at_once_have_an_instant_each(busy):
    world = busy()
    first = Copying(world, "first", "uring", 65536)
    time.sleep(0.4)
    second = Copying(world, "second", "threads", 4096)
    backups = [first.finish(), second.finish()]
    world.stop()
    verdicts = [world.judge(backup.images, backup.window) for backup in backups]
    assert all(verdict.explained for verdict in verdicts), verdicts
    assert verdicts[0].latest < verdicts[1].earliest


def test_a_sidefile_drained_ahead_of_order_is_explained(busy):
    """So little memory that chunks must be claimed for the sidefile's sake; the load is kept below the cap."""
    world = busy(options={"rate": 250, "max": 16384})
    backup = Copying(world, "t0", "uring", 65536, memory_bytes=24 * MIB).finish()
    world.stop()
    verdict = world.judge(backup.images, backup.window)
    assert verdict.explained, verdict.faults
    assert sum(report["chunks_ahead"] for report in backup.reports) > 0


@pytest.mark.parametrize("track", [4096, 65536])
def test_without_validation_no_instant_explains_the_group(busy, track):
    world = busy()
    backup = Copying(world, "broken", "uring", track, faults=NO_VALIDATION).finish()
    world.stop()
    assert not world.judge(backup.images, backup.window).explained
