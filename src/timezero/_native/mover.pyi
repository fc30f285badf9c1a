"""The data mover's C core: buffer space, sources, sinks, transfers."""

from typing import Any

from timezero._native.mover_ends import PackWriter as PackWriter
from timezero._native.mover_ends import SessionView as SessionView
from timezero._native.mover_ends import Sink as Sink
from timezero._native.mover_ends import Source as Source

CHUNK_DEFAULT: int
INDEX_ENTRY_BYTES: int  # 48
OUTCOMES: dict[str, int]  # enum tz_outcome: how a chunk ended

class BufferSpace:
    """The preallocated memory of a mover: `frames` frames of `frame_size` bytes (a multiple of 4096).

    ready: frames to be touched now, the ones that are used first (None: all); the others when they are used.
    """

    def __init__(
        self,
        frame_size: int,
        frames: int,
        *,
        minimum: int = 2,
        ready: int | None = None,
        huge: bool = True,
        lock: bool = False,
    ) -> None: ...
    def stats(self) -> dict[str, int | bool]: ...
    def close(self) -> None: ...

class Mover:
    """Transfers of whole datasets, many chunks in flight, in C threads.

    engine: "auto", "uring" or "threads"; depth: chunks in flight a worker (0: as many as pay, from 8 to 32);
    rate: bytes a second (0: no limit). opportunistic: gives way to the application, whose p99 latency may be
    latency_ns, or (0) latency_percent of what was usual before T0 (0: 125).
    """

    def __init__(
        self,
        space: BufferSpace,
        *,
        engine: str = "auto",
        workers: int = 0,
        depth: int = 0,
        rate: int = 0,
        opportunistic: bool = False,
        latency_ns: int = 0,
        latency_percent: int = 0,
        faults: int = 0,
    ) -> None: ...
    @property
    def engine(self) -> str: ...
    def add(self, source: Source, sink: Sink, *, index: bool = False) -> int:
        """Add a transfer; its number. `index`: keep index entries. Source and sink are used up."""
    def start(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool:
        """True when every transfer has ended. Releases the GIL; signals are handled by the caller's short timeouts."""
    def cancel(self) -> None: ...
    def report(self, transfer: int) -> dict[str, Any]:
        """Fields of tz_transfer_report; side as "", "source", "sink" or "session"."""
    def rest(self, rests: bool) -> None:
        """Begin nothing but what a filling sidefile needs copied, until called with False."""
    def speed(self) -> dict[str, int | bool]:
        """Fields of tz_mover_speed: what it may do now."""
    def bytes_done(self) -> int:
        """Bytes of all datasets that are done, holes included."""
    def index(self, transfer: int) -> bytes:
        """The index entries of a finished transfer, as they are stored."""
    def outcomes(self, transfer: int) -> bytes:
        """How each chunk of a finished transfer ended, enum tz_outcome; empty without a delta or salvage."""
    def waiting(self) -> tuple[float, int, str]:
        """(seconds that the oldest operation on a device waits for it, transfer, "source" or "sink"); 0.0 for none."""
    def waits_for(self, transfer: int, side: str) -> bool:
        """Does an operation of this transfer wait for the device on this side, "source" or "sink"?"""
    def sync(self, transfer: int) -> None:
        """Make an image durable. OSError is final."""
    def close(self, timeout: float | None = None) -> bool:
        """Cancel, wait, release everything. Safe to repeat.

        False when a device has not answered within `timeout` seconds: what the mover uses is kept until the process
        ends.
        """
