"""A repository that is there: its places, its recovery points, and its locks.

Who holds which lock
    repository.json, shared       a backup, while it makes its id and while it publishes: short moments
    repository.json, exclusive    prune, from its first look to its last removal
    recovery-points/<id>/lock     a backup, from making its id to its end; prune must win it before it sweeps
Readers hold none: they open what they need first, and nothing is ever overwritten.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from timezero.errors import NoRepositoryError, TimezeroError, UsageError
from timezero.repository import documents, index, manifest, names
from timezero.repository.locks import FileLock
from timezero.repository.point import RecoveryPoint

#: Seconds that a backup about to start waits for a prune.
_PATIENCE_S = 10.0


class RepositoryInfo(NamedTuple):
    """What repository.json says. chunk_size, track_size: bytes, the defaults of new recovery points."""

    id: str
    created_ns: int
    timezero: str
    chunk_size: int
    track_size: int


class Opened:
    """A repository of format 1, as readers, writers and prune see it. Reading takes no lock and writes nothing."""

    def __init__(self, path: str) -> None:
        """Open the repository at `path`.

        Raises NoRepositoryError, TimezeroError (a newer format, unreadable) or VerificationError.
        """
        self.path = os.path.abspath(path)
        try:
            fields = documents.load(self._file)
        except (FileNotFoundError, NotADirectoryError):
            raise NoRepositoryError(
                f"{path}: no repository here: the first `timezero backup --repo` makes one"
            ) from None
        except TimezeroError as error:
            if isinstance(error.__cause__, NotADirectoryError):
                raise NoRepositoryError(f"{path}: no repository here: it is not a directory") from None
            raise
        manifest.check_format(fields, path, names.FORMAT)
        self.info = RepositoryInfo(
            id=fields.text("id", 32, "[0-9a-f]{32}"),
            created_ns=fields.integer("created_ns"),
            timezero=fields.text("timezero", 100),
            chunk_size=fields.power_of_two("chunk_size", index.CHUNK_MIN, index.CHUNK_MAX),
            track_size=fields.power_of_two("track_size", 4096, 1 << 20),
        )

    @property
    def _file(self) -> str:
        return os.path.join(self.path, names.REPOSITORY_FILE)

    @property
    def points_path(self) -> str:
        """The directory of recovery points."""
        return os.path.join(self.path, names.POINTS_DIR)

    @property
    def packs_path(self) -> str:
        """The directory of packs."""
        return os.path.join(self.path, names.PACKS_DIR)

    def ids(self) -> list[str]:
        """Ids of the recovery points that exist, oldest first, damaged ones too."""
        return [name for name in self.directories() if os.path.lexists(self._manifest(name))]

    def directories(self) -> list[str]:
        """Ids of all directories of recovery points, committed or not, oldest first."""
        try:
            return sorted(filter(names.is_id, os.listdir(self.points_path)))
        except FileNotFoundError:
            return []

    def _manifest(self, point_id: str) -> str:
        return os.path.join(self.points_path, point_id, names.MANIFEST_FILE)

    def resolve(self, point: str) -> str:
        """The id that `point` means: an id, a unique prefix of one, or `latest`. Raises UsageError."""
        ids = self.ids()
        if point == "latest":
            if not ids:
                raise UsageError(f"{self.path}: there is no recovery point yet")
            return ids[-1]
        found = [name for name in ids if name.startswith(point)] if point else []
        if point in found:
            return point
        if not found:
            raise UsageError(f"{self.path}: no recovery point {point!r}: see `timezero list`")
        if len(found) > 1:
            raise UsageError(f"{self.path}: {point!r} could be {found[0]} or {found[1]}: write more of it")
        return found[0]

    def point(self, point: str, *, salvage: bool = False) -> RecoveryPoint:
        """The recovery point that `point` means; to `salvage`, even without its manifest.

        Raises UsageError, VerificationError.
        """
        point_id = self.resolve(point)
        try:
            return RecoveryPoint(self.path, point_id, self.info.id, salvage=salvage)
        except FileNotFoundError:
            raise UsageError(f"{self.path}: {point_id} was just removed") from None

    def points(self) -> tuple[list[RecoveryPoint], dict[str, str]]:
        """All recovery points that can be read, oldest first, and {id: what is wrong} of the others."""
        good: list[RecoveryPoint] = []
        damaged: dict[str, str] = {}
        for point_id in self.ids():
            try:
                good.append(RecoveryPoint(self.path, point_id, self.info.id))
            except FileNotFoundError:
                continue
            except TimezeroError as error:
                damaged[point_id] = str(error)
        return good, damaged

    def lock_shared(self, patience: float | None = None) -> FileLock:
        """Keep prune out for a moment. patience: seconds to wait for one that runs."""
        what = f"{self.path}: locked by a `timezero prune`: try again when it has ended"
        return FileLock(self._file, shared=True, what=what, patience=_PATIENCE_S if patience is None else patience)

    def lock_exclusive(self) -> FileLock:
        """Keep everyone else from making, publishing and removing recovery points."""
        what = f"{self.path}: locked by another timezero: try again when it has ended"
        return FileLock(self._file, shared=False, what=what, patience=1.0)
