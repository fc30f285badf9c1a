"""A repository as a directory: opening, making on first use, writing and removing recovery points."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from timezero._crash import crash_point
from timezero._version import __version__
from timezero.errors import NoRepositoryError, TimezeroError, VerificationError
from timezero.repository import documents, durable, names
from timezero.repository.opened import Opened

if TYPE_CHECKING:
    from timezero.repository.prune import PruneReport
    from timezero.repository.writer import PointWriter

CHUNK_DEFAULT = 1 << 20
TRACK_DEFAULT = 4 << 10  # what sessions usually have (config.TRACK_USUAL), for datasets that have none


class Repository(Opened):
    """A repository of format 1: made on first use, written to, pruned."""

    @classmethod
    def open_or_create(
        cls, path: str, *, chunk_size: int = CHUNK_DEFAULT, track_size: int = TRACK_DEFAULT
    ) -> Repository:
        """Open the repository at `path`; make it when the directory is missing or empty. Sizes in bytes, for a new one.

        Raises NoRepositoryError when something else is in the directory.
        """
        try:
            return cls(path)
        except NoRepositoryError:
            check_usable(path)
        path = os.path.abspath(path)
        _create(path, chunk_size, track_size)
        return cls(path)

    def writer(self) -> PointWriter:
        """What writes a new recovery point, once it has begun. A context manager, which begins it."""
        from timezero.repository.writer import PointWriter

        return PointWriter(self)

    def prune(self, *, keep: int | None = None, points: tuple[str, ...] = ()) -> PruneReport:
        """Remove recovery points and whatever no recovery point needs.

        keep: how many of the newest stay; None keeps all but `points`. Raises LockedError, UsageError,
        VerificationError.
        """
        from timezero.repository.prune import prune

        return prune(self, keep=keep, points=points)


def check_usable(path: str) -> None:
    """Refuse a `path` that neither holds a repository nor can become one. Changes nothing.

    Raises NoRepositoryError, VerificationError, TimezeroError.
    """
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            raise NoRepositoryError(
                f"{path}: no repository here, and there is no directory {parent} to make one in"
            ) from None
        return
    except OSError as error:
        raise NoRepositoryError(f"{path}: no repository here: {error.strerror}") from error
    if names.REPOSITORY_FILE in entries:
        Repository(path)
    elif others := sorted(name for name in entries if name != "lost+found" and not names.is_temporary(name)):
        if {names.POINTS_DIR, names.PACKS_DIR} & set(others):
            raise VerificationError(f"{path}: damaged: {names.REPOSITORY_FILE} is missing beside {others[0]}")
        raise NoRepositoryError(f"{path}: no repository here, and the directory is not empty (it has {others[0]!r})")


def _create(path: str, chunk_size: int, track_size: int) -> None:
    info = {
        "format": names.FORMAT,
        "id": os.urandom(16).hex(),
        "created_ns": time.time_ns(),
        "timezero": __version__,
        "chunk_size": chunk_size,
        "track_size": track_size,
    }
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        with suppress(FileExistsError):  # another backup was quicker: its repository is ours too
            durable.publish(path, names.REPOSITORY_FILE, documents.render(info))
        crash_point("repository.made")
        durable.sync_directory(os.path.dirname(path))
    except OSError as error:
        raise TimezeroError(f"{path}: a repository cannot be made here: {error.strerror}") from error
