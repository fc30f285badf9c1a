"""fsfreeze:PATH: freeze a mounted file system that no dataset lives on."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from timezero.errors import TimezeroError, UsageError
from timezero.quiesce.hooks import Context, Hook
from timezero.quiesce.patience import Patience


class Freezer(Protocol):
    """What freezes and thaws: a process of its own, which thaws whatever becomes of us.

    It thaws only what it froze itself: of a file system that somebody else holds frozen it keeps its hands.
    """

    def freeze(self) -> Any:
        """Freeze all points. Raises OSError, TimezeroError; then none of them is frozen by it."""

    def thaw(self) -> Any:
        """Thaw what was frozen. Raises OSError (EINVAL: not frozen any more)."""

    def close(self) -> Any:
        """Thaw, and end the process."""


MakeFreezer = Callable[[Sequence[str]], Freezer]

_WORDS = {
    errno.EBUSY: "is frozen already: thaw it with `fsfreeze --unfreeze`, or wait for whoever froze it",
    errno.EOPNOTSUPP: "this file system cannot be frozen",
    errno.EPERM: "freezing needs root",
}


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

    def prepare(self, patience: Patience) -> None:
        """Start the process that freezes."""
        self._freezer = self._make_freezer([self.point])

    def pre(self, context: Context, patience: Patience) -> None:
        """Freeze."""
        assert self._freezer
        try:
            self._freezer.freeze()
        except OSError as error:
            raise TimezeroError(_WORDS.get(error.errno or 0, error.strerror or str(error))) from None
        self._is_frozen = True

    def post(self, context: Context, patience: Patience) -> None:
        """Thaw. That there was nothing to be thawed any more means that T0 was not a still moment."""
        assert self._freezer
        try:
            self._freezer.thaw()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise TimezeroError(
                    f"cannot be thawed: {error.strerror or error}: try `fsfreeze --unfreeze {self.point}`"
                ) from None
            if self._is_frozen:
                raise TimezeroError("was thawed by somebody else before T0 was secured: run the job again") from None

    def close(self) -> None:
        """End the process."""
        freezer, self._freezer = self._freezer, None
        if freezer:
            freezer.close()
