"""A session of the subsystem: a part on each of its volumes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timezero._native.subsystem import Session

Report = dict[str, Any]

_END_PATIENCE = 2.0  # seconds at the end of a session for before-images that are being read or saved


@dataclass
class Part:
    """One volume's share of a session."""

    volume: str
    session: Session
    final: Report | None = None  # how it ended, once it was closed to give way

    def report(self) -> Report:
        try:
            return {"volume": self.volume, **self.session.report()}
        except ValueError:  # closed
            if self.final is None:
                raise
            return self.final


class Group:
    """A session over one or more volumes; it has their names from admission on, and a part for each once prepared."""

    def __init__(self, name: str, volumes: Sequence[str], memory: int, file: int) -> None:
        self.name = name
        self.volumes = tuple(volumes)
        self.parts: list[Part] = []
        self.memory = memory  # bytes admitted
        self.file = file
        self.prepared = False
        self.punctured = False  # told to the log
        self.suspended = False  # has been through a suspension
        self.leaving = False  # gives way, or has
        self.whole = False  # its domain is all of its volumes
        self._ending = threading.Lock()  # its owner may end it while it gives way

    @property
    def coming(self) -> int:
        """Bytes of memory that were admitted, and are not allocated yet."""
        return 0 if self.leaving or self.prepared else self.memory

    def allocated(self) -> int:
        """Bytes of file tier that the disk has given it. Waits for a disk that does not answer."""
        return sum(_allocated(part.session) for part in list(self.parts))

    @property
    def may_give_way(self) -> bool:
        """Only one that has its T0, and only once."""
        return self.suspended and not self.leaving

    def reports(self) -> list[Report]:
        return [part.report() for part in self.parts]

    def end(self, *, cancel: bool) -> list[Report]:
        """Take every part out of its gate; the final reports. Not when its suspension is under way."""
        with self._ending:
            return self._end(cancel=cancel)

    def _end(self, *, cancel: bool) -> list[Report]:
        until = time.monotonic() + _END_PATIENCE
        return [
            {"volume": part.volume, **part.session.end(cancel=cancel, timeout=until - time.monotonic())}
            for part in self.parts
        ]

    def leaves(self) -> None:
        """It is on no volume any more, as far as admission is concerned, and nothing that it has will be asked for."""
        self.leaving = self.punctured = True
        self.volumes = ()

    def give_way(self) -> bool:
        """Lose T0, on all volumes before any is freed, and free everything; true when that could be done.

        The owner finds the final reports.
        """
        with self._ending:
            with contextlib.suppress(ValueError):  # its owner was quicker
                for part in self.parts:
                    part.session.give_way()
                for part, final in zip(self.parts, self._end(cancel=False), strict=True):
                    part.final = final
            if not self._close():
                return False
            self.memory = self.file = 0
            return True

    def close(self) -> bool:
        """Free what no disk still owes an answer to; true when that is everything."""
        with self._ending:
            return self._close()

    def _close(self) -> bool:
        closed = [part.session.close(0.0) for part in self.parts]
        return all(closed)


def _allocated(session: Session) -> int:
    """Bytes of its file tier that the disk has given it."""
    try:
        descriptor = session.handles()["file_fd"]
        return os.fstat(descriptor).st_blocks * 512 if descriptor >= 0 else 0
    except (ValueError, OSError):  # being closed
        return 0
