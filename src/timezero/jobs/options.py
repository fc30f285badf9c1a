"""How a job moves data, and how it makes its session. Every setting has a name here and on the command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from timezero.errors import UsageError
from timezero.jobs.windows import Window, parse_windows
from timezero.units import MIB, parse_latency_target

ENGINES = ("auto", "uring", "threads")
MODES = ("opportunistic", "full")
MODE_ALIASES = {"fixed": "full"}  # what "full" was called
LATENCY_TARGET = "1.25x"
DEPTH_LEAST = 8  # chunks in flight that a mover begins with: csrc/mover/mover.c


def engine_from_environment() -> str:
    """TIMEZERO_IO, or "auto". Raises UsageError."""
    engine = os.environ.get("TIMEZERO_IO") or "auto"
    if engine not in ENGINES:
        raise UsageError(f"TIMEZERO_IO is {engine!r}: it can be {', '.join(ENGINES)}")
    return engine


class MoverOptions(NamedTuple):
    """The data mover.

    buffer_bytes: the buffer space, all the memory that data passes through. depth: chunks in flight a worker (0: as
    many as pay, from 8 to 32), workers: threads (0: one). rate: bytes a second over everything, 0 for no limit.
    mode: "opportunistic" gives way to the application's load, "full" does not ("fixed" is an older name of it).
    latency_target: what the application's latency may be while the mover gives way, its 99th percentile: "2ms", or
    "1.25x", times what it is without copying. window: the hours of the day in which data is copied, local time,
    "01:00-05:00"; none: all. engine: "auto", "uring", "threads".
    device_deadline_s: seconds for a device, of source or target, to answer one request, then the job fails.
    """

    buffer_bytes: int = 32 * MIB
    depth: int = 0
    workers: int = 0
    rate: int = 0
    mode: str = "opportunistic"
    engine: str = ""
    device_deadline_s: float = 60.0
    latency_target: str = LATENCY_TARGET
    window: tuple[str, ...] = ()

    @property
    def yields(self) -> bool:
        """Does the mover give way?"""
        return MODE_ALIASES.get(self.mode, self.mode) == "opportunistic"

    @property
    def windows(self) -> tuple[Window, ...]:
        """The hours of the day in which data is copied. Raises UsageError."""
        return parse_windows(self.window)

    def frames(self, chunk_size: int, sizes: Iterable[int]) -> int:
        """Frames of the buffer space for datasets of these sizes; raises UsageError when it has no room for two.

        No more than there are chunks: touching the 32 MiB of the default takes longer than copying a small file.
        """
        frames = self.buffer_bytes // chunk_size
        if frames < 2:
            raise UsageError(
                f"a buffer space of {self.buffer_bytes} bytes is too small: two chunks of {chunk_size} must fit"
            )
        useful = sum(max(2, -(-size // chunk_size)) for size in sizes)
        return max(2, min(frames, useful, 2**20))

    def frames_ready(self) -> int:
        """Frames that are in use from the beginning: the rest is touched when it is needed."""
        return max(self.workers, 1) * (self.depth or DEPTH_LEAST)

    def frames_taken(self, chunk_size: int, sizes: Sequence[int]) -> int:
        """Frames that are in use in any case."""
        return min(self.frames(chunk_size, sizes), self.frames_ready())

    def check(self) -> None:
        """Raises UsageError for a mode or engine that does not exist, or a number out of range."""
        parse_latency_target(self.latency_target)
        parse_windows(self.window)
        if MODE_ALIASES.get(self.mode, self.mode) not in MODES:
            raise UsageError(f"no mode {self.mode!r}: it can be {', '.join(MODES)}")
        if self.engine and self.engine not in ENGINES:
            raise UsageError(f"no engine {self.engine!r}: it can be {', '.join(ENGINES)}")
        for name, value, limit in (
            ("depth", self.depth, 1024),
            ("workers", self.workers, 64),
            ("rate", self.rate, 2**50),
        ):
            if not 0 <= value <= limit:
                raise UsageError(f"{name} {value} is out of range: 0 to {limit}")
        if not self.device_deadline_s > 0:
            raise UsageError("a device deadline of 0 leaves no time to answer")


class SessionOptions(NamedTuple):
    """A session with a storage subsystem.

    control: the path of its control socket, or those of several subsystems, None for the default one. track_size:
    bytes; memory_bytes, file_bytes: caps of the sidefile's tiers, a volume; None for what the subsystem is set to.
    deadline_us: how long the application may be suspended at most; when it passes, the application goes on and the job
    fails. quiesce: hooks around the suspension (timezero.quiesce), quiesce_deadline_us: how long each of their steps
    may take.
    """

    control: str | Sequence[str] | None = None
    track_size: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    deadline_us: int = 1_000_000
    quiesce: tuple[str, ...] = ()
    quiesce_deadline_us: int = 10_000_000

    def check_quiesce(self, *, served: bool) -> None:
        """Hooks belong to a suspension: where nothing is served, there is none. Raises UsageError."""
        if self.quiesce and not served:
            raise UsageError(f"quiesce {self.quiesce[0]!r}: nothing is suspended for sources at rest: leave it out")

    @property
    def controls(self) -> list[str]:
        """Control sockets, each once."""
        from timezero.places import default_control

        named = [self.control] if isinstance(self.control, str) else [*(self.control or ())]
        return list(dict.fromkeys(named or [default_control()]))


class FileOptions(NamedTuple):
    """Datasets that are files. mounts: NAME=PATH, where the file system of a volume is mounted; read_through: copy what
    cannot be read from its volume through its file system, after T0.
    """

    mounts: tuple[str, ...] = ()
    read_through: bool = False


def check_sizes(track_size: int, chunk_size: int) -> None:
    """Tracks are a power of two from 4 KiB to 1 MiB, chunks one from the track size to 16 MiB. Raises UsageError."""
    if not 4096 <= track_size <= 1 << 20 or track_size & (track_size - 1):
        raise UsageError(f"a track of {track_size} bytes: it must be a power of two from 4 KiB to 1 MiB")
    if not track_size <= chunk_size <= 16 << 20 or chunk_size & (chunk_size - 1):
        raise UsageError(f"a chunk of {chunk_size} bytes: it must be a power of two from the track size to 16 MiB")
