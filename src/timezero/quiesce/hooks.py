"""What every hook is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from timezero.quiesce.patience import Patience

_LABEL_MAX = 80  # characters: commands can be long, and errors are one line


@dataclass(frozen=True)
class Context:
    """What a hook may know of the job: the volumes of its group, and the session's name.

    held_s: seconds; all that may happen from the beginning of its pre step to that of its post step takes no longer.
    """

    volumes: tuple[str, ...] = ()
    session: str = ""
    held_s: float = 0.0


class Hook(ABC):
    """One `--quiesce`. `text` is what the user wrote; the order of calls is check, prepare, pre, post, close.

    Steps raise TimeoutError when their patience ends, Interrupted when it was cut short, OSError or TimezeroError when
    they fail; what they raise does not name the hook, which Quiesced does.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @property
    def label(self) -> str:
        """The hook in an error."""
        return self.text if len(self.text) <= _LABEL_MAX else self.text[: _LABEL_MAX - 3] + "..."

    def check(self) -> None:  # noqa: B027 (most hooks have nothing to look at)
        """Before anything is prepared. Raises UsageError for what cannot work."""

    def frozen_device(self) -> int | None:
        """st_dev of the file system that nobody can write to between pre and post, if there is one."""
        return None

    def prepare(self, patience: Patience) -> None:  # noqa: B027
        """What takes time and disturbs nobody: done for all hooks before the first pre step."""

    @abstractmethod
    def pre(self, context: Context, patience: Patience) -> None:
        """Still the application."""

    @abstractmethod
    def post(self, context: Context, patience: Patience) -> None:
        """Let it go on. Called once for each `pre` that was begun, also for one that failed half-way."""

    def close(self) -> None:  # noqa: B027
        """Give up what `prepare` took. Safe to repeat, never raises."""
