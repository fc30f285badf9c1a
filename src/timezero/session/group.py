"""A group of served volumes with one T0, held over a control connection.

All volumes of a group are served by one storage subsystem, which suspends in one step. A group over several
subsystems: federation.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from timezero.control.client import Client, ConnectionLostError, ControlError
from timezero.errors import PunctureError, TimezeroError, UsageError
from timezero.places import default_control as default_control
from timezero.session import answers

DEADLINE_US = 1_000_000  # of a suspension, when the caller gives none
_DESCRIPTORS = ("owned_fd", "shared_fd", "drain_fd", "volume_fd", "file_fd", "domain_fd")
_PREPARE_TIMEOUT = 120.0  # seconds: memory is touched and locked, the file tier allocated
_END_TIMEOUT = 120.0  # seconds: before-image reads under way have to complete
#: What helps, by what a session was punctured for (docs/control-protocol.md).
_HELP = {
    "cap": "a larger sidefile or a faster target helps",
    "read": "the volume could not be read where it was being written: look at its device",
    "sidefile": "the file tier of its sidefile could not be written: look at that disk",
    "stalled": "a disk did not answer in time: look at those of the volume and of its sidefile",
    "admission": "it gave way to a newer session, as limits.when_full of the server says: back up at different times",
}
_SUSPEND_GRACE = 30.0  # seconds beyond the deadline, which the subsystem keeps by itself


class Part:
    """One volume of a group. `handles` is what the mover's source takes; its descriptors are this object's."""

    def __init__(self, volume: str, size: int, handles: Mapping[str, int]) -> None:
        self.volume = volume
        self.size = size  # bytes
        self.handles = handles

    @property
    def domain_fd(self) -> int:
        """Memory to write the domain into, a bit a track in little-endian 64-bit words; -1: the whole volume.

        Zero-filled, of fixed size; see `Group.set_domain`.
        """
        return self.handles.get("domain_fd", -1)

    def close(self) -> None:
        """Safe to repeat."""
        handles, self.handles = self.handles, {}
        for key in _DESCRIPTORS:
            if handles.get(key, -1) >= 0:
                with contextlib.suppress(OSError):  # of a device that is gone: nothing was written through it
                    os.close(handles[key])


class Group:
    """A session over all of its volumes. Leaving the context cancels it, unless it was ended."""

    def __init__(self, client: Client, name: str, parts: Sequence[Part]) -> None:
        self.name = name
        self.parts = list(parts)
        self._client = client
        self._suspended = False
        self._ended = False

    @property
    def server(self) -> Mapping[str, Any]:
        """What the storage subsystem said of itself: version, engine, limits."""
        return self._client.server

    def set_domain(self, volume: str) -> None:
        """Designate the tracks that were written into the part's `domain_fd`: what is written later does not count.

        After prepare and before T0, for each volume that was named in prepare's `domain`; the last call counts. Raises
        ControlError with code "bad-request" for any other volume, or once T0 was reached.
        """
        self._client.call("domain", session=self.name, volume=volume)

    def suspend(self, deadline_us: int = DEADLINE_US) -> dict[str, int]:
        """Reach T0: close all gates, drain, install, open. The times of each part in nanoseconds; `total_ns` counts
        from the first gate closed, and `close_ns` from the order to close.

        Raises DeadlineError when it took longer than `deadline_us` microseconds (the application runs on, there is no
        T0), LockedError when another suspension is under way.
        """
        timeout = deadline_us / 1e6 + _SUSPEND_GRACE
        reply = self._client.call("suspend", timeout=timeout, session=self.name, deadline_us=deadline_us)
        self._suspended = True
        return answers.times(reply)

    def post(self, op: str, **fields: Any) -> None:
        """Send a step of a suspension (close, install, open, abort) without waiting: `answer` must follow."""
        self._client.post(op, session=self.name, **fields)

    def answer(self, timeout: float) -> dict[str, Any]:
        """The answer to the step. timeout: seconds. Raises DeadlineError, LockedError, ConnectionLostError."""
        return self._client.answer(timeout=timeout)

    def report(self) -> list[dict[str, Any]]:
        """How each part is doing, in their order. Raises PunctureError when the connection is lost."""
        with self._t0_is_lost_with_connection():
            reports = answers.reports(self._client.call("report", session=self.name))
        if [report["volume"] for report in reports] != [part.volume for part in self.parts]:
            raise ControlError("internal", "the storage subsystem's answer does not fit the request")
        return reports

    def end(self, given_up: Collection[str] = (), *, copy_bytes_s: int | None = None) -> list[dict[str, Any]]:
        """End the session; the final reports. Raises PunctureError unless every part is intact.

        given_up: volumes whose data is not wanted any more; theirs may be lost. copy_bytes_s: how fast the job copied
        where nothing that its user asked for held it back; the subsystem tells later ones. None: it says nothing.
        """
        told = {} if copy_bytes_s is None else {"copy_bytes_s": copy_bytes_s}
        with self._t0_is_lost_with_connection():
            reply = self._client.call("end", timeout=_END_TIMEOUT, session=self.name, cancel=False, **told)
            reports = answers.reports(reply)
        self._ended = True
        lost = [
            f"{report['volume']} ({report['puncture']})"
            for report in reports
            if report["state"] != "ended" and report["volume"] not in given_up
        ]
        if lost or [report["volume"] for report in reports] != [part.volume for part in self.parts]:
            reasons = {str(report["puncture"]) for report in reports} & _HELP.keys()
            advice = "; ".join(_HELP[reason] for reason in sorted(reasons)) or "run it again"
            raise PunctureError(
                f"session {self.name}: T0 is lost on volume {', '.join(lost) or '?'}; nothing was committed, the "
                f"application was not harmed; {advice}"
            )
        return reports

    def hang_up(self) -> None:
        """Close the connection: gates that are closed for this group open at once, the session is cancelled."""
        self._ended = True
        self._client.close()

    def cancel(self) -> None:
        """Give T0 up. Safe to repeat, also when the connection is gone: then the subsystem has cancelled by itself."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(TimezeroError):
                self._client.call("end", timeout=_END_TIMEOUT, session=self.name, cancel=True)

    def close(self) -> None:
        """Cancel unless ended, close the descriptors and the connection. Safe to repeat."""
        try:
            self.cancel()
        finally:
            for part in self.parts:
                part.close()
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _t0_is_lost_with_connection(self) -> Any:
        try:
            yield
        except ConnectionLostError as error:
            raise PunctureError(f"session {self.name}: T0 is lost: {error}") from None


def prepare(
    control: str | None,
    names: Sequence[str],
    *,
    track_size: int | None = None,
    memory_bytes: int | None = None,
    file_bytes: int | None = None,
    domain: Sequence[str] = (),
) -> Group:
    """A session over the served volumes `names`, allocated and not yet at T0.

    control: socket path, by default `default_control()`. track_size, memory_bytes, file_bytes (of each volume's
    sidefile): bytes, by default the server's. domain: those of `names` of which only some tracks are designated, with
    `Group.set_domain`, before T0. Raises UsageError (unknown volume, impossible size), ControlError with
    code "limit" (admission), TimezeroError when nobody serves the control socket.
    """
    import uuid

    if isinstance(names, str) or not names:
        raise UsageError("a session needs the names of its volumes")
    name = str(uuid.uuid4())
    wish = {"track_size": track_size, "memory_bytes": memory_bytes, "file_bytes": file_bytes}
    client = Client(control or default_control())
    descriptors: list[int] = []
    try:
        reply, descriptors = client.call_for_descriptors(
            "prepare",
            timeout=_PREPARE_TIMEOUT,
            session=name,
            volumes=list(names),
            **{key: value for key, value in wish.items() if value is not None},
            **({"domain": list(domain)} if domain else {}),
        )
        parts = _parts(reply, descriptors, names, domain)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        client.close()
        raise
    return Group(client, name, parts)


def _parts(
    reply: Mapping[str, Any], descriptors: Sequence[int], names: Sequence[str], domain: Collection[str]
) -> list[Part]:
    """The parts of a reply to `prepare`, each descriptor used once. Raises ControlError."""
    left = dict(enumerate(descriptors))
    try:
        parts = []
        for part in reply["parts"]:
            places = {"domain_fd": -1, **part["handles"]}
            handles = {key: left.pop(places[key]) if places[key] >= 0 else -1 for key in _DESCRIPTORS}
            sizes = {key: int(part[key]) for key in ("owned_bytes", "shared_bytes")}
            parts.append(Part(part["volume"], int(part["size"]), {**handles, **sizes}))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ControlError("internal", f"the storage subsystem's answer makes no sense: {error!r}") from None
    if left or [part.volume for part in parts] != list(names):
        raise ControlError("internal", "the storage subsystem's answer does not fit the request")
    for part in parts:
        if (part.domain_fd >= 0) != (part.volume in domain):
            raise ControlError(
                "internal",
                f"volume {part.volume}: the storage subsystem cannot take a domain: is it of an older version?",
            )
    return parts


def status(control: str | None = None) -> dict[str, Any]:
    """What the storage subsystem on a control socket serves and does: volumes, sessions, engine, uptime_s, nbd."""
    with Client(control or default_control()) as client:
        return answers.status(client.call("status"))
