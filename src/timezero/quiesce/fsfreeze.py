"""fsfreeze:PATH: freeze a mounted file system that no dataset lives on."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from timezero.errors import TimezeroError, UsageError
from timezero.quiesce.hooks import Context, Hook
from timezero.quiesce.patience import Patience


class Freezer(Protocol):
    """What freezes and thaws: a process of its own, which thaws whatever becomes of us.

    It thaws only what it froze itself: a file system that somebody else holds frozen stays so. Raises TimezeroError and
    its kinds, OSError.
    """

    def sync(self) -> Any:
        """Write out what is dirty, so that freezing has little left to do."""

    def freeze(self, deadline_s: float) -> Any:
        """Freeze all points, for at most so many seconds from now on. When it raises, none is frozen by it."""

    def thaw(self) -> Any:
        """Thaw what was frozen. Raises when it had not been frozen without a break."""

    def close(self) -> Any:
        """Thaw what still is frozen, and end the process. Safe to repeat."""


MakeFreezer = Callable[[Sequence[str]], Freezer]


def watchdog(points: Sequence[str]) -> Freezer:
    """The freezer that concordances use as well."""
    try:
        module = importlib.import_module("timezero.concordance.freezer")
    except ModuleNotFoundError:
        raise TimezeroError("this timezero was built without a freezer") from None
    made: Freezer = module.Freezer(points)
    return made


class FsfreezeHook(Hook):
    """One file system."""

    def __init__(self, text: str, point: str, make_freezer: MakeFreezer = watchdog) -> None:
        super().__init__(text)
        self.point = point
        self._make_freezer = make_freezer
        self._freezer: Freezer | None = None
        self._is_frozen = False

    def check(self) -> None:
        """A path that is no mount point means its whole file system, often the root: surely not what was meant."""
        try:
            os.stat(self.point)
        except OSError as error:
            raise UsageError(f"quiesce {self.label}: {error.strerror}") from None
        if not os.path.ismount(self.point):
            raise UsageError(f"quiesce {self.label}: is not a mount point: name the one that the file system is on")

    def frozen_device(self) -> int:
        """That of the mount point."""
        return os.stat(self.point).st_dev

    def prepare(self, patience: Patience) -> None:
        """Start the process that freezes; write out what is dirty."""
        self._freezer = self._make_freezer([self.point])
        self._freezer.sync()

    def pre(self, context: Context, patience: Patience) -> None:
        """Freeze, for as long as everything until the post step may take."""
        assert self._freezer
        self._freezer.freeze(context.held_s)
        self._is_frozen = True

    def post(self, context: Context, patience: Patience) -> None:
        """Thaw. What was thawed before, by its deadline or by somebody else, was not still at T0: that raises."""
        assert self._freezer
        if self._is_frozen:
            self._freezer.thaw()

    def close(self) -> None:
        """End the process."""
        freezer, self._freezer = self._freezer, None
        if freezer:
            freezer.close()
