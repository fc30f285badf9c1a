"""The storage subsystem's C core: reactors, served volumes, sessions, the suspension of a group."""

from collections.abc import Sequence
from typing import TypedDict

class SuspensionTimes(TypedDict):
    """Nanoseconds.

    close_ns: from the order to close until all gates are closed, most of it until the threads of their volumes look.
    total_ns: from the first gate closed to the last one open. Nobody waits before the first is closed, so that part of
    close_ns is not in it: total_ns may be the smaller one.
    """

    close_ns: int
    drain_ns: int
    install_ns: int
    open_ns: int
    total_ns: int

class Reactor:
    """A thread with an I/O engine of its own that runs volumes and their NBD connections.

    engine: "auto", "uring" or "threads". poll_us: look this long (microseconds) for work before sleeping. Raises
    OSError when the engine cannot be made.
    """

    def __init__(self, engine: str = "auto", *, poll_us: int = 0) -> None: ...
    @property
    def engine(self) -> str:
        """The engine in use, "uring" or "threads"."""
    def close(self) -> None:
        """End the thread. Raises RuntimeError while it has volumes. Safe to repeat."""

class Volume:
    """A file or block device served by a reactor, opened and locked exclusively.

    Raises BlockingIOError (EBUSY) when another server holds it, OSError otherwise.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        *,
        read_only: bool = False,
        buffered: bool = False,
        lock: bool = True,
        faults: int = 0,
    ) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int:
        """Bytes."""
    @property
    def direct(self) -> bool: ...
    @property
    def block_size(self) -> int:
        """Bytes: requests aligned to it are served without read-modify-write."""
    @property
    def read_only(self) -> bool: ...
    @property
    def identity(self) -> tuple[int, int]:
        """(device, inode) of a file, (rdev, 0) of a block device."""
    def transmission_flags(self) -> int:
        """NBD transmission flags to announce."""
    def adopt(
        self,
        fd: int,
        *,
        structured: bool,
        base_allocation_id: int | None = None,
        max_requests: int = 0,
        max_bytes: int = 0,
        silent_ms: int = 0,
    ) -> None:
        """Serve a negotiated NBD connection. The descriptor is taken over on success. Zero: what tz/nbd.h says."""
    def disconnect_all(self, timeout: float) -> bool:
        """End all NBD connections; False when some request did not complete within `timeout` seconds."""
    def stats(self) -> dict[str, int]:
        """Fields of tz_volume_stats and tz_nbd_stats."""
    def recent_writes(self) -> dict[str, int]:
        """Fields of tz_recent_writes: updates that came in within about a minute, and how many blocks they touched."""
    def close(self) -> None:
        """Disconnect, close, unlock. Safe to repeat.

        Raises RuntimeError while it has sessions that were not closed, OSError when an issued request does not
        complete; then it is open as before, but for its connections.
        """

class Session:
    """One volume's part of a session, prepared: everything is allocated, nothing is intercepted yet.

    track_size: bytes. memory_bytes: cap of all memory it takes, tables included. file_bytes: cap of the file tier.
    low_percent, high_percent: its marks, of slots; max_delay_us: of a writer past the high mark; 0: what is usual;
    exempt: no writer is ever delayed. volume_answer_ms, tier_answer_ms: longest wait for a before-image's read and its
    write to the file tier, 0 for 30 and 5 s; then it is punctured. file_fd: the file tier, taken over on success.
    domain: only the tracks that `set_domain` designates are of the session, instead of the whole volume. Raises
    OSError: EINVAL (sizes), ENOSPC (the caps hold no slot, or the file tier's disk cannot hold its cap),
    ENOMEM.
    """

    def __init__(
        self,
        volume: Volume,
        *,
        track_size: int,
        memory_bytes: int,
        file_fd: int = -1,
        file_bytes: int = 0,
        domain: bool = False,
        low_percent: int = 0,
        high_percent: int = 0,
        max_delay_us: int = 0,
        exempt: bool = False,
        volume_answer_ms: int = 0,
        tier_answer_ms: int = 0,
        faults: int = 0,
    ) -> None: ...
    @staticmethod
    def check_sizes(
        volume: Volume, *, track_size: int, memory_bytes: int, file_bytes: int = 0, domain: bool = False
    ) -> None:
        """Raise what making such a session would raise for its sizes. Nothing is allocated."""
    @property
    def volume(self) -> Volume: ...
    def handles(self) -> dict[str, int]:
        """owned_fd, shared_fd, drain_fd, volume_fd, file_fd, domain_fd (-1: none), owned_bytes, shared_bytes.

        The descriptors stay the session's; send or duplicate them. domain_fd: memory of a bit a track, in
        little-endian 64-bit words, all zero; write with pwrite or a mapping, its position is nobody's.
        """
    @property
    def lacks_domain(self) -> bool:
        """True until `set_domain`, for a session made with domain=True; it cannot be installed."""
    def set_domain(self) -> None:
        """Copy the domain that was written into domain_fd. What is written later counts only when this is called again.

        Raises BlockingIOError (EBUSY) once the session is installed, OSError(EINVAL) when it has the whole volume.
        """
    def report(self) -> dict[str, int | str]:
        """Fields of tz_session_report.

        state: "prepared", "active", "punctured", "ended". puncture: "none", "cap", "read", "sidefile", "protocol",
        "mover", "gate", "stalled", "admission".
        """
    def give_way(self) -> None:
        """Puncture the session (reason "admission") if it is active. It has to be ended all the same."""
    def end(self, *, cancel: bool = False, timeout: float | None = None) -> dict[str, int | str]:
        """Take the session out of its gate; the final report. state "ended" means intact. Safe to repeat.

        timeout: seconds to wait for disks that still owe it an answer; the report is final all the same. Raises
        RuntimeError while it takes part in a suspension.
        """
    def close(self, timeout: float | None = None) -> bool:
        """End when needed (as cancelled), free memory and descriptors. Safe to repeat.

        False, and nothing is freed, when a disk still owes it an answer after `timeout` seconds: call it again. Raises
        RuntimeError while it takes part in a suspension.
        """

class Suspension:
    """A group's passage from close to open. Deadlines are microseconds.

    Every step raises TimeoutError when the deadline passed, BlockingIOError when a gate is closed for another
    suspension, OSError when a session lacks its domain (ENODATA) or had its T0 (ECANCELED): whatever fails, every gate
    is open again.
    """

    def __init__(self, sessions: Sequence[Session]) -> None: ...
    def run(self, deadline_us: int) -> SuspensionTimes:
        """close, drain, install, open in one go."""
    def close_gates(self, deadline_us: int) -> None: ...
    def install(self) -> None: ...
    def open_gates(self) -> SuspensionTimes: ...
    def abort(self) -> None: ...
