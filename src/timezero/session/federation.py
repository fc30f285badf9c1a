"""A group whose volumes are served by several storage subsystems, with one T0 for all of them.

    close on all ─▶ all have drained ─▶ install on all ─▶ open on all ─▶ every gate says: closed without a break since
                                                                         before the last install

All subsystems do a step at the same time, and each holds its own gates to the deadline, whatever becomes of us and of
the others. When any does not answer in time, refuses or is gone, the connections to all are closed: their gates open at
once, their sessions are cancelled, there is no T0.

Errors: as session.group has them. Threads: one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, Self

from timezero.control.client import ConnectionLostError
from timezero.errors import DeadlineError, PunctureError, TimezeroError, UsageError
from timezero.session import answers
from timezero.session.group import DEADLINE_US, Group, Part, prepare, status

_GRACE_S = 0.5  # beyond the deadline, for an answer to arrive

Reports = list[dict[str, Any]]


class Federation:
    """Sessions on several subsystems that were prepared together; the surface of a Group."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = list(groups)
        self.name = "+".join(group.name for group in groups)

    @property
    def parts(self) -> list[Part]:
        """The volumes of all groups."""
        return [part for group in self._groups for part in group.parts]

    def set_domain(self, volume: str) -> None:
        """As of a Group."""
        next(group for group in self._groups if any(part.volume == volume for part in group.parts)).set_domain(volume)

    def suspend(self, deadline_us: int = DEADLINE_US) -> dict[str, int]:
        """Reach T0 on all of them; nanoseconds: of each step the longest, and from the order to close until all
        answered that they are open as `total_ns`.

        Raises DeadlineError when not all gates were closed together within `deadline_us`; LockedError when one of the
        subsystems is busy with another suspension.
        """
        began = time.monotonic()
        until = began + deadline_us / 1e6 + _GRACE_S
        try:
            self._step(until, "close", deadline_us=deadline_us)
            self._step(until, "install")
            replies = self._step(until, "open")
        except BaseException as error:
            self._let_go()
            if isinstance(error, ConnectionLostError):
                raise DeadlineError(f"{error}; every gate opens by itself, there is no T0") from None
            raise
        times = [answers.times(reply) for reply in replies]
        worst = {name: max(t.get(name, 0) for t in times) for name in times[0]}
        return worst | {"total_ns": round((time.monotonic() - began) * 1e9)}

    def _step(self, until: float, op: str, **fields: Any) -> Reports:
        for group in self._groups:
            group.post(op, **fields)
        return [group.answer(max(until - time.monotonic(), 0.001)) for group in self._groups]

    def _let_go(self) -> None:
        for group in self._groups:
            with contextlib.suppress(TimezeroError):
                group.hang_up()

    def report(self) -> Reports:
        """How each part is doing. Raises PunctureError when a connection is lost."""
        return [part for group in self._groups for part in group.report()]

    def end(self, given_up: Collection[str] = (), *, copy_bytes_s: int | None = None) -> Reports:
        """End all sessions; the final reports. Raises PunctureError unless every part of every session is intact.

        given_up, copy_bytes_s: as of a Group; the job copies from all of them at once.
        """
        reports: Reports = []
        lost: PunctureError | None = None
        for group in self._groups:
            try:
                reports += group.end(given_up, copy_bytes_s=copy_bytes_s)
            except PunctureError as error:  # the others have to be ended all the same
                lost = lost or error
        if lost:
            raise lost
        return reports

    def cancel(self) -> None:
        """Give T0 up. Safe to repeat."""
        for group in self._groups:
            group.cancel()

    def close(self) -> None:
        """Cancel unless ended, close descriptors and connections. Safe to repeat."""
        with contextlib.ExitStack() as stack:
            for group in self._groups:
                stack.callback(group.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def locate(controls: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """{control socket: the volumes of `names` that are served behind it}, sockets without any left out.

    Raises UsageError for a volume that no one serves, or two.
    """
    found: dict[str, list[str]] = {control: [] for control in controls}
    served = {control: {str(volume["name"]) for volume in status(control)["volumes"]} for control in found}
    for name in names:
        at = [control for control, volumes in served.items() if name in volumes]
        if not at:
            known = ", ".join(sorted(set().union(*served.values())))
            raise UsageError(f"volume {name!r} is served by none of {', '.join(found)}; there are {known}")
        if len(at) > 1:
            raise UsageError(f"volume {name!r} is served by {' and by '.join(at)}: name one of them with --control")
        found[at[0]].append(name)
    return {control: volumes for control, volumes in found.items() if volumes}


def prepare_all(controls: Sequence[str], names: Sequence[str], **wish: Any) -> Group | Federation:
    """Sessions over `names`, wherever they are served: one group, or several with one T0. `wish`: as of prepare()."""
    places = locate(controls, names)
    with contextlib.ExitStack() as undo:
        groups = []
        for control, volumes in places.items():
            own = dict(wish)
            if "domain" in own:
                own["domain"] = [volume for volume in own["domain"] if volume in volumes]
            groups.append(undo.enter_context(prepare(control, volumes, **own)))
        undo.pop_all()
    return groups[0] if len(groups) == 1 else Federation(groups)
