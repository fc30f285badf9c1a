"""A job's session with the storage subsystem: one group of volumes with one T0.

Errors: DeadlineError, PunctureError, UsageError, TimezeroError. Threads: one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from timezero._crash import crash_point
from timezero._linux.stack import Identity, identity_of
from timezero.errors import TimezeroError, UsageError
from timezero.jobs.moving import in_words
from timezero.jobs.options import SessionOptions
from timezero.jobs.windows import ALWAYS, Hours

if TYPE_CHECKING:
    from timezero._native.bitmap import Bitmap
    from timezero._native.mover import SessionView, Source
    from timezero.jobs.files import Files
    from timezero.jobs.preflight import Preflight
    from timezero.quiesce import Quiesced


_THAW_S = 5.0  # seconds that writing out what little is dirty and thawing may take beyond the deadline

_NONSENSE = "the storage subsystem's answer makes no sense: is it of this version?"


class Served:
    """Volumes of one or several subsystems under one session.

    A context manager: leaving it before `end` cancels the session.
    """

    def __init__(self, volumes: Sequence[str], options: SessionOptions, *, domain: Sequence[str] = ()) -> None:
        """Prepare: everything is allocated, the application notices nothing.

        domain: those of the volumes of which only some tracks are designated, by `set_domain`.
        """
        from timezero import quiesce, session

        self._options = options
        self._hooks = quiesce.parse_all(options.quiesce)
        self._served = _look_at(options.controls, volumes)
        self.paths = {name: str(found["path"]) for name, found in self._served.items()}
        self._group = session.prepare_all(
            options.controls,
            volumes,
            track_size=options.track_size,
            memory_bytes=options.memory_bytes,
            file_bytes=options.file_bytes,
            **({"domain": list(domain)} if domain else {}),
        )
        crash_point("mover.prepared")
        self._views: dict[str, SessionView] = {}
        self._parts = {part.volume: part for part in self._group.parts}
        self._slots: dict[str, int] = {}
        self._low_marks: dict[str, int] = {}
        self._tracks = self._ask_track_sizes()
        #: The coarsest of all volumes.
        self.track_size = max(self._tracks.values())
        self.suspension: dict[str, int] = {}
        self.hooks: dict[str, dict[str, int]] = {}
        self.t0_ns = 0
        self.final: dict[str, dict[str, int]] = {}

    def _ask_track_sizes(self) -> dict[str, int]:
        """Subsystems choose by themselves when they are not told, and not all the same."""
        try:
            reports = self._group.report()
            found = {str(part["volume"]): int(part["track_size"]) for part in reports}
            if found.keys() != self._parts.keys():
                raise KeyError("volume")
            self._slots = {str(part["volume"]): int(part["slots"]) for part in reports}
            self._low_marks = {str(part["volume"]): int(part["low_mark"]) for part in reports}
            return found
        except BaseException as error:
            self._group.close()
            if isinstance(error, KeyError | TypeError | ValueError):
                raise TimezeroError(_NONSENSE) from None
            raise

    def track_size_of(self, volume: str) -> int:
        """Bytes."""
        return self._tracks[volume]

    def size(self, volume: str) -> int:
        """Bytes."""
        return int(self._parts[volume].size)

    def source(self, volume: str) -> Source:
        """The mover's source for a volume."""
        from timezero._native.mover import Source

        with in_words(volume):
            return Source.session(self._parts[volume].handles)

    def view(self, volume: str) -> SessionView:
        """What all sources of files on a volume share."""
        from timezero._native.mover import SessionView

        if volume not in self._views:
            with in_words(volume):
                self._views[volume] = SessionView(self._parts[volume].handles)
        return self._views[volume]

    def set_domain(self, volume: str, fill: Callable[[Bitmap], object]) -> None:
        """Designate tracks of a volume, before `suspend`'s gates close.

        `fill` sets their bits in the memory where the storage subsystem takes them from: most of it is never touched.
        """
        import mmap

        from timezero._native.bitmap import Bitmap

        tracks = -(-self.size(volume) // self._tracks[volume])
        memory = mmap.mmap(self._parts[volume].domain_fd, 0)  # goes with its last user, which an error may keep a while
        if len(memory) != (tracks + 63) // 64 * 8:
            raise TimezeroError(_NONSENSE)
        fill(Bitmap(tracks, memory))
        self._group.set_domain(volume)

    def sidefiles(self) -> dict[str, set[Identity]]:
        """{volume: everything that the file tier of its sidefile stands on}, of those that have one."""
        from timezero._linux.stack import standing_on

        tiers = {name: part.handles["file_fd"] for name, part in self._parts.items()}
        return {name: standing_on(f"/proc/self/fd/{fd}") for name, fd in tiers.items() if fd >= 0}

    def reader(self, volume: str) -> Callable[[int, int], bytes]:
        """Reads `length` bytes of a volume from `offset` on, as they are now, in its own cache mode."""
        descriptor = self._parts[volume].handles["volume_fd"]

        def read(offset: int, length: int) -> bytes:
            import mmap

            skip = offset % mmap.PAGESIZE
            with mmap.mmap(-1, -(-(skip + length) // mmap.PAGESIZE) * mmap.PAGESIZE) as memory:
                got = os.preadv(descriptor, [memory], offset - skip)
                return bytes(memory[skip : min(got, skip + length)])

        return read

    def identities(self) -> list[tuple[str, str, Identity]]:
        """(name, path, identity) of every volume, as far as its path can be looked at from here."""
        found = []
        for name, path in self.paths.items():
            try:
                found.append((name, path, identity_of(os.stat(path))))
            except OSError:
                continue
        return found

    def foresee(
        self, total: int, *, rate: int = 0, hours: Hours = ALWAYS, sizes: Mapping[str, int] | None = None
    ) -> Preflight:
        """What the sidefiles will have to hold while `total` bytes are copied, as far as one can tell.

        rate: bytes a second that the user allows, 0 for no limit. hours: in which data is copied, from T0 on.
        sizes: {volume: bytes to be copied of it} of those that are not copied whole.
        """
        from timezero.jobs import preflight

        volumes = [
            preflight.Volume(
                name,
                min((sizes or {}).get(name, part.size), part.size),
                self._tracks[name],
                self._slots[name],
                self._low_marks[name],
                preflight.Writes.of_status(self._served.get(name, {}).get("recent_writes")),
            )
            for name, part in self._parts.items()
        ]
        speeds = [self._served.get(name, {}).get("copy_bytes_s") for name in self._parts]
        known = [float(speed) for speed in speeds if isinstance(speed, int | float)]
        return preflight.foresee(volumes, total, preflight.speed_of(known, rate), hours)

    def suspend(self, files: Files | None = None) -> None:
        """Secure T0, of files too. Raises DeadlineError, TimezeroError of a hook; applications run on either way."""
        formed: dict[str, int] = {"map_us": 0}  # whole volumes need no map: their concordance is the identity
        until = self._options.deadline_us / 1e6
        self._check_hooks()
        if files:
            files.get_ready()  # what may take long is done before an application is asked to be still
        with self._quiesced(files) as quiesced, files.formed(self, until, formed) if files else nullcontext():
            before = time.time_ns()
            times = {name: int(value) for name, value in dict(self._group.suspend(self._options.deadline_us)).items()}
        self.suspension = formed | {name.removesuffix("_ns") + "_us": ns // 1000 for name, ns in times.items()}
        if self._hooks:
            self.suspension["hooks_us"] = quiesced.total_us
            self.hooks = quiesced.times
        # T0 lies between the closing and the opening of the gates; the instant of the call is never later than it.
        self.t0_ns = before

    def _check_hooks(self) -> None:
        """An update that is held for its before-image would wait for the thaw, and the thaw for the update."""
        frozen = {device: hook.label for hook in self._hooks if (device := hook.frozen_device()) is not None}
        for volume, below in self.sidefiles().items() if frozen else ():
            for device in frozen.keys() & {identity[0] for identity in below}:
                raise UsageError(
                    f"quiesce {frozen[device]}: the sidefile of volume {volume} lies on what it freezes, and thawing "
                    "would wait for itself; serve with a --sidefile-path elsewhere"
                )

    def _quiesced(self, files: Files | None) -> Quiesced:
        from timezero.quiesce import Quiesced

        deadline_s = self._options.quiesce_deadline_us / 1e6
        body_s = self._options.deadline_us / 1e6
        if files:  # one deadline for freezing and all that happens meanwhile, and what was dirtied since get_ready
            body_s += body_s + _THAW_S
        return Quiesced(self._hooks, deadline_s, body_s=body_s, volumes=list(self._parts), session=self._group.name)

    def look(self) -> tuple[int, int]:
        """(bytes in the sidefile, updates intercepted), now, over all volumes."""
        used = intercepted = 0
        for part in self._group.report():
            used += int(part.get("used_slots", 0)) * self._tracks[str(part["volume"])]
            intercepted += int(part.get("intercepted", 0))
        return used, intercepted

    def end(self, given_up: Collection[str] = (), *, copy_bytes_s: int | None = None) -> None:
        """End the session after the last chunk. Raises PunctureError unless T0 was intact to the end.

        given_up: volumes that failed already; theirs may be lost. copy_bytes_s: bytes a second at which the job copied
        (None: not known), for the estimates of later ones.
        """
        for part in self._group.end(given_up, copy_bytes_s=copy_bytes_s):
            self.final[str(part["volume"])] = _numbers(part)

    def close(self) -> None:
        """Cancel the session if it has not ended; the application notices nothing. Safe to repeat."""
        for view in self._views.values():
            view.close()
        self._views.clear()
        self._group.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _numbers(part: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in part.items() if type(value) is int and value >= 0}


def _look_at(controls: Sequence[str], volumes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{volume: what its subsystem's status says of it}."""
    from timezero import session

    served: dict[str, dict[str, Any]] = {}
    for control in controls:
        status = session.status(control)
        try:
            served |= {str(volume["name"]): {**volume, "path": str(volume["path"])} for volume in status["volumes"]}
        except (KeyError, TypeError):
            raise TimezeroError(_NONSENSE) from None
    return {name: served[name] for name in volumes if name in served}
