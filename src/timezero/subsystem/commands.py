"""The operations of the control protocol, for one connection: validation, then the registry and the core."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timezero._native.subsystem import Suspension
from timezero._version import __version__
from timezero.config import Limits, check_track
from timezero.control.server import Answer, RequestError
from timezero.control.wire import DESCRIPTORS_MAX, VERSION
from timezero.errors import UsageError
from timezero.subsystem.group import Group
from timezero.subsystem.sessions import HANDLES, Registry, Turn
from timezero.subsystem.volumes import Volumes

# Of one session: their descriptors travel in one message. Not all have a domain: those that do are counted at prepare.
VOLUMES_MAX = DESCRIPTORS_MAX // (len(HANDLES) - 1)
DEADLINE_MAX_US = 60_000_000
_SIZE_MAX = 1 << 48
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)

Request = Mapping[str, Any]


class Commands:
    """What one connection asked for. Its sessions and its suspension are its own, and end with it."""

    def __init__(
        self, volumes: Volumes, registry: Registry, limits: Limits, status: Callable[[], dict[str, Any]]
    ) -> None:
        self._volumes = volumes
        self._registry = registry
        self._limits = limits
        self._status = status
        self._groups: dict[str, Group] = {}
        self._suspension: tuple[Group, Suspension, Turn] | None = None
        self._operations: dict[str, Callable[[Request], Answer]] = {
            "hello": self._hello,
            "status": lambda request: Answer(self._status()),
            "prepare": self._prepare,
            "domain": self._domain,
            "suspend": self._suspend,
            "close": self._close_gates,
            "install": self._install,
            "open": self._open_gates,
            "abort": self._abort,
            "report": self._report,
            "end": self._end,
        }

    def handle(self, op: str, request: Request) -> Answer:
        operation = self._operations.get(op)
        if operation is None:
            raise RequestError("bad-request", f"op: {op[:64]!r} is unknown")
        return operation(request)

    def close(self) -> None:
        """The connection is gone: abort its suspension, cancel its sessions."""
        self._drop_suspension()
        for group in list(self._groups.values()):
            del self._groups[group.name]
            self._registry.end(group, cancel=True)

    # ---- operations ----

    def _hello(self, request: Request) -> Answer:
        version = _number(request, "version", 1, 1 << 31)
        if version != VERSION:
            raise RequestError("version", f"version: this server speaks {VERSION}, not {version}", fatal=True)
        limits = {"sessions": self._limits.sessions, "memory_bytes": self._limits.memory, "volumes": VOLUMES_MAX}
        server = {"version": VERSION, "server": __version__, "pid": os.getpid()}
        return Answer({**server, "engine": self._volumes.engine, "limits": limits})

    def _prepare(self, request: Request) -> Answer:
        name, volumes = _session_name(request), self._volume_names(request)
        wish = self._registry.wish(
            volumes, _track(request), _optional(request, "memory_bytes", 1), _optional(request, "file_bytes", 0)
        )
        if wish.memory_bytes < wish.track_size:
            raise RequestError("bad-request", f"memory_bytes: {wish.memory_bytes} hold not even one track")
        domain = _domain_names(request, volumes)
        group = self._groups[name] = self._registry.prepare(name, volumes, wish, domain)
        parts: list[dict[str, Any]] = []
        descriptors: list[int] = []
        for part in group.parts:
            handles = part.session.handles()
            places = {}
            for key in HANDLES:
                there = handles[key] >= 0
                places[key] = len(descriptors) if there else -1
                descriptors += [handles[key]] if there else []
            sizes = {key: handles[key] for key in ("owned_bytes", "shared_bytes")}
            parts.append({"volume": part.volume, "size": part.session.volume.size, "handles": places, **sizes})
        return Answer({"parts": parts}, tuple(descriptors))

    def _domain(self, request: Request) -> Answer:
        group = self._group(request)
        name = request.get("volume")
        part = next((part for part in group.parts if part.volume == name), None)
        if part is None:
            raise RequestError("bad-request", f"volume: session {group.name} has none of that name")
        try:
            part.session.set_domain()
        except BlockingIOError:
            raise RequestError("bad-request", f"volume {name}: session {group.name} has its T0 already") from None
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise RequestError("bad-request", f"volume {name}: all of it is the session's domain") from None
            raise RequestError("io", f"volume {name}: domain: {error.strerror}") from None
        return Answer({})

    def _suspend(self, request: Request) -> Answer:
        group = self._group(request)
        deadline = _number(request, "deadline_us", 1, DEADLINE_MAX_US)
        turn = self._registry.claim_suspension(deadline)
        try:
            suspension = self._new_suspension(group)
            _check_domains(group)
            times = self._step(lambda: suspension.run(deadline))
        finally:
            self._registry.release_suspension(turn)
        self._registry.told_suspension(group, times)
        return Answer({"times": times})

    def _close_gates(self, request: Request) -> Answer:
        group = self._group(request)
        deadline = _number(request, "deadline_us", 1, DEADLINE_MAX_US)
        if self._suspension is not None:
            raise RequestError("bad-request", f"session {self._suspension[0].name}: its gates are closed already")
        turn = self._registry.claim_suspension(deadline)
        try:
            suspension = self._new_suspension(group)
            self._step(lambda: suspension.close_gates(deadline))
        except BaseException:
            self._registry.release_suspension(turn)
            raise
        self._suspension = group, suspension, turn
        return Answer({})

    def _install(self, request: Request) -> Answer:
        group, suspension, _ = self._suspended(request)
        try:
            _check_domains(group)
            self._step(suspension.install)
        except BaseException:
            self._drop_suspension()
            raise
        return Answer({})

    def _open_gates(self, request: Request) -> Answer:
        group, suspension, turn = self._suspended(request)
        try:
            times = self._step(suspension.open_gates)
        except BaseException:
            self._drop_suspension()
            raise
        self._suspension = None
        self._registry.release_suspension(turn)
        self._registry.told_suspension(group, times)
        return Answer({"times": times})

    def _abort(self, request: Request) -> Answer:
        self._suspended(request)
        self._drop_suspension()
        return Answer({})

    def _report(self, request: Request) -> Answer:
        return Answer({"parts": self._group(request).reports()})

    def _end(self, request: Request) -> Answer:
        group = self._group(request)
        cancel = request.get("cancel", False)
        if type(cancel) is not bool:
            raise RequestError("bad-request", "cancel: must be true or false")
        copy_bytes_s = _optional(request, "copy_bytes_s", 1)
        if self._suspension is not None and self._suspension[0] is group:
            self._drop_suspension()
        del self._groups[group.name]
        return Answer({"parts": self._registry.end(group, cancel=cancel, copy_bytes_s=copy_bytes_s)})

    # ---- pieces ----

    def _new_suspension(self, group: Group) -> Suspension:
        if group.suspended:
            raise RequestError("bad-request", f"session {group.name} has its T0 already")
        return Suspension([part.session for part in group.parts])

    def _step(self, step: Callable[[], Any]) -> Any:
        """A step of a suspension, its failures as the protocol has them."""
        try:
            return step()
        except TimeoutError:
            raise RequestError("deadline", "the deadline passed; every gate is open again, there is no T0") from None
        except BlockingIOError:
            raise RequestError("busy", "a gate is closed for another suspension; try again") from None
        except OSError as error:
            if error.errno == errno.ECANCELED:
                raise RequestError("bad-request", "suspension: a session of it has its T0 already") from None
            raise RequestError("io", f"suspension: {error.strerror}") from None

    def _drop_suspension(self) -> None:
        if self._suspension is not None:
            (_, suspension, turn), self._suspension = self._suspension, None
            try:
                suspension.abort()
            finally:
                self._registry.release_suspension(turn)

    def _suspended(self, request: Request) -> tuple[Group, Suspension, Turn]:
        group = self._group(request)
        if self._suspension is None or self._suspension[0] is not group:
            raise RequestError("bad-request", f"session {group.name}: its gates are not closed")
        return self._suspension

    def _group(self, request: Request) -> Group:
        name = _session_name(request)
        group = self._groups.get(name)
        if group is None:
            raise RequestError("unknown-session", f"session {name}: this connection has none of that name")
        return group

    def _volume_names(self, request: Request) -> list[str]:
        names = request.get("volumes")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise RequestError("bad-request", "volumes: must be a list of names")
        if len(set(names)) != len(names):
            raise RequestError("bad-request", "volumes: a name is there twice")
        if len(names) > VOLUMES_MAX:
            raise RequestError("limit", f"volumes: {len(names)} are more than {VOLUMES_MAX}")
        for name in names:
            if name not in self._volumes:
                known = ", ".join(self._volumes.names())
                raise RequestError("unknown-volume", f"volume {name[:128]!r} is not served here; there are {known}")
        return names


def _session_name(request: Request) -> str:
    name = request.get("session")
    if not isinstance(name, str) or not _SESSION.fullmatch(name):
        raise RequestError("bad-request", "session: must be 1 to 128 letters, digits, '.', '_', ':' and '-'")
    return name


def _domain_names(request: Request, volumes: Sequence[str]) -> list[str]:
    """Of the session's volumes: those of which only some tracks are designated."""
    names = request.get("domain", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError("bad-request", "domain: must be a list of names")
    if len(set(names)) != len(names) or not set(names) <= set(volumes):
        raise RequestError("bad-request", "domain: must be names out of volumes, each once")
    descriptors = len(volumes) * (len(HANDLES) - 1) + len(names)
    if descriptors > DESCRIPTORS_MAX:
        raise RequestError("limit", f"domain: {descriptors} descriptors are more than {DESCRIPTORS_MAX}")
    return names


def _check_domains(group: Group) -> None:
    lacking = [part.volume for part in group.parts if part.session.lacks_domain]
    if lacking:
        raise RequestError(
            "bad-request", f"session {group.name}: the domain of volume {', '.join(lacking)} was never set"
        )


def _number(request: Request, key: str, least: int, most: int) -> int:
    value = request.get(key)
    if type(value) is not int or not least <= value <= most:
        raise RequestError("bad-request", f"{key}: must be a whole number from {least} to {most}")
    return value


def _optional(request: Request, key: str, least: int) -> int | None:
    return None if request.get(key) is None else _number(request, key, least, _SIZE_MAX)


def _track(request: Request) -> int | None:
    track = _optional(request, "track_size", 1)
    if track is not None:
        try:
            check_track(track)
        except UsageError as error:
            raise RequestError("bad-request", f"track_size: {error}") from None
    return track
