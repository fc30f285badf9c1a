"""The sessions of a storage subsystem: admission, one suspension at a time, and who owns what.

A session belongs to the control connection that prepared it; what is allocated and freed blocks outside the registry's
lock.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from timezero._native.subsystem import Session
from timezero.config import Limits, SidefileConfig, track_for
from timezero.control.server import RequestError
from timezero.subsystem import sidefile
from timezero.subsystem.admission import Machine, admit, look
from timezero.subsystem.group import Group, Part, Report
from timezero.subsystem.upkeep import upkeep
from timezero.subsystem.volumes import Volumes

HANDLES = ("owned_fd", "shared_fd", "drain_fd", "volume_fd", "file_fd", "domain_fd")

_TURN_GRACE = 0.5  # seconds for gates whose deadline passed to have opened


@dataclass(frozen=True)
class Wish:
    """What a session asks for each of its volumes, in bytes: caps of all memory it takes, and of its file tier."""

    track_size: int
    memory_bytes: int
    file_bytes: int


@dataclass(frozen=True, eq=False)
class Turn:
    """To be the one suspension, until an instant of the monotonic clock."""

    until: float  # seconds


class Registry:
    """All sessions of the subsystem."""

    def __init__(
        self,
        volumes: Volumes,
        defaults: SidefileConfig,
        limits: Limits,
        log: Callable[[str], None],
        machine: Machine | None = None,
    ) -> None:
        self._volumes = volumes
        self._defaults = defaults
        self._limits = limits
        self._log = log
        self._machine = machine or Machine()
        self._upkeep = upkeep(len(volumes.names()), volumes.reactors, limits.connections)
        self._speeds: dict[str, int] = {}
        self._lock = threading.Lock()
        self._groups: dict[str, Group] = {}
        self._ended: list[Group] = []  # whose memory a disk may still write to
        self._suspension: Turn | None = None

    # ---- looking ----

    def status(self) -> list[Report]:
        """A report of each part of each session."""
        with self._lock:
            return [{"session": group.name, **report} for group in self._groups.values() for report in group.reports()]

    def memory(self) -> int:
        """Bytes that the sessions' caps add up to: they are taken at prepare, and all of them."""
        with self._lock:
            return sum(group.memory for group in self._groups.values())

    def copy_speed(self, volume: str) -> int | None:
        """Bytes a second at which the last session of whole volumes, this one among them, was copied; None: not known.

        Only the mover knows: from here, hours in which it rested and a rate that it kept look like slowness.
        """
        return self._speeds.get(volume)

    def tell_punctures(self) -> None:
        """Log each session that was punctured since the last look."""
        news = []
        with self._lock:
            told = [group for group in self._groups.values() if group.suspended and not group.punctured]
            for group in told:
                reports = [report for report in group.reports() if report["state"] == "punctured"]
                group.punctured = bool(reports)
                news += [(group.name, report) for report in reports]
        for name, report in news:  # who reads the log may be slow, and nobody else is to wait for that
            self._log(f"session {name}: volume {report['volume']} punctured ({report['puncture']})")

    def sweep(self) -> bool:
        """Free ended sessions whose disks have answered meanwhile; true when none is left."""
        with self._lock:
            self._ended = [group for group in self._ended if not group.close()]
            return not self._ended

    # ---- beginning and ending ----

    def wish(
        self, volumes: Sequence[str], track_size: int | None, memory_bytes: int | None, file_bytes: int | None
    ) -> Wish:
        """What a session over `volumes` gets: what it asks for, else what is set. Its tracks are of one size."""
        defaults = self._defaults
        memory = defaults.memory if memory_bytes is None else memory_bytes
        track = defaults.track if track_size is None else track_size
        file = defaults.file if file_bytes is None else file_bytes
        if track is None:
            track = track_for(max(self._volumes[volume].size for volume in volumes), memory, file)
        return Wish(track, memory, file)

    def prepare(self, name: str, volumes: Sequence[str], wish: Wish, domain: Collection[str] = ()) -> Group:
        """Allocate a session over `volumes`, over tracks still to be set of those in `domain`.

        Raises RequestError; then nothing is left of it.
        """
        if wish.file_bytes and not self._defaults.path:
            raise RequestError("bad-request", "file_bytes: this server has no sidefile directory (--sidefile-path)")
        self._check_sizes(volumes, wish, domain)
        group, leaving = self._admit(name, volumes, wish)
        with ExitStack() as undo:
            undo.callback(self._forget, group)
            stuck = []
            for other in leaving:  # all of them: what is marked as leaving has to leave
                self._log(f"session {other.name}: gives way to session {name} (limits.when_full)")
                if not other.give_way():
                    stuck.append(other.name)
            if stuck:
                raise RequestError("limit", f"session {stuck[0]} gives way, once its disks answer; try again")
            for volume in volumes:
                group.parts.append(Part(volume, self._prepare_part(volume, wish, domain=volume in domain)))
            undo.pop_all()
        group.prepared = True
        group.whole = not domain
        return group

    def _check_sizes(self, volumes: Sequence[str], wish: Wish, domain: Collection[str]) -> None:
        """A session that cannot be made, whatever room there is, must not cost another one its place."""
        for volume in volumes:
            try:
                Session.check_sizes(
                    self._volumes[volume],
                    track_size=wish.track_size,
                    memory_bytes=wish.memory_bytes,
                    file_bytes=wish.file_bytes,
                    domain=volume in domain,
                )
            except OSError as error:
                raise _unprepared(volume, wish, error) from None

    def _prepare_part(self, volume: str, wish: Wish, *, domain: bool) -> Session:
        descriptor = -1
        try:
            if wish.file_bytes and self._defaults.path:
                descriptor = sidefile.create(self._defaults.path)
            return Session(
                self._volumes[volume],
                track_size=wish.track_size,
                memory_bytes=wish.memory_bytes,
                file_fd=descriptor,
                file_bytes=wish.file_bytes,
                domain=domain,
                volume_answer_ms=self._limits.volume_answer_s * 1000,
                tier_answer_ms=self._limits.sidefile_answer_s * 1000,
                low_percent=self._defaults.low_percent,
                high_percent=self._defaults.high_percent,
                max_delay_us=self._defaults.max_delay_us,
                exempt=self._volumes.is_exempt(volume) or self._defaults.max_delay_us == 0,
            )
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise _unprepared(volume, wish, error) from None

    def _admit(self, name: str, volumes: Sequence[str], wish: Wish) -> tuple[Group, list[Group]]:
        """Reserve what the session will take, before it takes anything; and who is to give way to it."""
        group = Group(name, volumes, wish.memory_bytes * len(volumes), wish.file_bytes * len(volumes))
        with self._lock:
            others = [*self._groups.values(), *self._ended]
        room = look(group, others, self._defaults.path, self._machine)  # a disk that hangs keeps this session waiting
        with self._lock:
            if name in self._groups:
                raise RequestError("bad-request", f"session {name} exists already")
            others = [*self._groups.values(), *self._ended]
            claims = admit(group, others, self._limits, self._upkeep, room, self._machine)
            names = {claim.name for claim in claims}
            leaving = [other for other in others if other.name in names and other.may_give_way]
            for other in leaving:
                other.leaves()
            self._groups[name] = group
        return group, leaving

    def end(self, group: Group, *, cancel: bool, copy_bytes_s: int | None = None) -> list[Report]:
        """End a session and free it; the final reports. copy_bytes_s: at which its mover copied, if that is known."""
        try:
            reports = group.end(cancel=cancel)
        finally:
            self._forget(group)
        words = ", ".join(f"{report['volume']} {_outcome(report, cancel)}" for report in reports)
        self._log(f"session {group.name}: {words}")
        if copy_bytes_s and group.whole and group.suspended and all(report["state"] == "ended" for report in reports):
            self._speeds |= dict.fromkeys((part.volume for part in group.parts), copy_bytes_s)
        return reports

    def _forget(self, group: Group) -> None:
        with self._lock:  # a report must not meet a session that is being freed
            self._groups.pop(group.name, None)
        if not group.close():
            volumes = ", ".join(part.volume for part in group.parts)
            self._log(f"session {group.name}: its memory is kept until the device of {volumes} answers")
            group.leaves()
            with self._lock:
                self._ended.append(group)

    # ---- suspension ----

    def claim_suspension(self, deadline_us: int) -> Turn:
        """Begin to be the one suspension of this subsystem. Raises RequestError.

        A turn ends by itself when its deadline has passed: its gates have opened then, whatever its owner does.
        """
        turn = Turn(time.monotonic() + deadline_us / 1e6 + _TURN_GRACE)
        with self._lock:
            if self._suspension is not None and time.monotonic() < self._suspension.until:
                raise RequestError("busy", "another suspension is under way; try again")
            self._suspension = turn
        return turn

    def release_suspension(self, turn: Turn) -> None:
        with self._lock:
            if self._suspension is turn:
                self._suspension = None

    def told_suspension(self, group: Group, times: dict[str, int]) -> None:
        group.suspended = True
        volumes = ", ".join(part.volume for part in group.parts)
        self._log(f"session {group.name}: T0 of {volumes}, suspended for {times['total_ns'] / 1000:.0f} us")


def _unprepared(volume: str, wish: Wish, error: OSError) -> RequestError:
    if error.errno in (errno.ENOSPC, errno.ENOMEM):
        return RequestError(
            "limit",
            f"volume {volume}: no room for a sidefile: {wish.memory_bytes} bytes of memory hold not even the session's "
            f"tables, or the disk cannot hold {wish.file_bytes} bytes of file tier ({error.strerror})",
        )
    if error.errno == errno.EINVAL:
        return RequestError("bad-request", f"volume {volume}: tracks of {wish.track_size} bytes do not fit its blocks")
    return RequestError("io", f"volume {volume}: session could not be prepared: {error.strerror}")


def _outcome(report: Report, cancel: bool) -> str:
    if report["state"] == "ended":
        return f"ended intact, {report['intercepted']} updates intercepted"
    if cancel:
        return "cancelled"
    return f"{report['state']} ({report['puncture']})"
