"""Removing recovery points, and sweeping what killed backups left behind.

Under the repository's exclusive lock nobody makes or publishes a recovery point, so what is seen stays true. A
manifest goes first and durably: from then on the recovery point does not exist, and a prune that is killed itself
leaves only what the next one sweeps.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from timezero._crash import crash_point
from timezero.errors import LockedError, TimezeroError, UsageError, VerificationError
from timezero.repository import durable, names, writer
from timezero.repository.locks import FileLock

if TYPE_CHECKING:
    from timezero.repository.opened import Opened
    from timezero.repository.point import RecoveryPoint


@dataclass
class PruneReport:
    """What a prune did. Ids: recovery points kept and removed, remains of dead backups swept, backups running."""

    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    packs_removed: int = 0
    bytes_freed: int = 0


def prune(repository: Opened, *, keep: int | None, points: tuple[str, ...]) -> PruneReport:
    """See Repository.prune."""
    if keep is not None and keep < 1:
        raise UsageError("prune keeps at least one recovery point: name those to remove with --point")
    try:
        with ExitStack() as stack:
            stack.enter_context(repository.lock_exclusive())
            return _prune(repository, _victims(repository, keep, points), stack)
    except OSError as error:
        raise TimezeroError(f"{repository.path}: cannot be pruned: {error.strerror}: {error.filename}") from error


def _victims(repository: Opened, keep: int | None, points: tuple[str, ...]) -> list[str]:
    victims = {repository.resolve(point) for point in points}
    if keep is not None:
        stay = [point_id for point_id in repository.ids() if point_id not in victims]
        victims.update(stay[:-keep])
    return sorted(victims)


def _prune(repository: Opened, victims: list[str], stack: ExitStack) -> PruneReport:
    report = PruneReport(removed=victims)
    survivors = _survivors(repository, victims)
    report.kept = [point.id for point in survivors]
    for point_id in victims:
        stack.enter_context(_lock(repository, point_id))
    for point_id in victims:
        directory = os.path.join(repository.points_path, point_id)
        durable.remove(os.path.join(directory, names.MANIFEST_FILE))
        crash_point("prune.manifest")
        durable.sync_directory(directory)
    for point_id in repository.directories():
        if point_id in victims or point_id in report.kept:
            continue
        try:
            stack.enter_context(_lock(repository, point_id))
            report.swept.append(point_id)
        except LockedError:
            report.running.append(point_id)
        except FileNotFoundError:
            continue  # a backup that fails removes what is its own without our lock
    needed = {pack.name for point in survivors for pack in point.manifest.packs}
    crash_point("prune.packs")
    _remove_packs(repository, needed, report)
    crash_point("prune.directories")
    for point_id in victims + report.swept:
        writer.remove_point_directory(repository, point_id)
    _remove_temporaries(repository, report.running)
    return report


def _survivors(repository: Opened, victims: list[str]) -> list[RecoveryPoint]:
    good, damaged = repository.points()
    for point_id, problem in damaged.items():
        if point_id not in victims:
            raise VerificationError(
                f"{problem}: nothing was pruned, because what {point_id} needs is not known; "
                f"remove it with --point {point_id}"
            )
    return [point for point in good if point.id not in victims]


def _lock(repository: Opened, point_id: str) -> FileLock:
    path = os.path.join(repository.points_path, point_id, names.LOCK_FILE)
    return FileLock(
        path, shared=False, create=True, what=f"{point_id}: locked by a running backup: try again when it has ended"
    )


def _remove_packs(repository: Opened, needed: set[str], report: PruneReport) -> None:
    for name in sorted(_names(repository.packs_path)):
        owner = names.pack_owner(name)
        if owner is None or name in needed or owner in report.running:
            continue
        path = os.path.join(repository.packs_path, name)
        report.bytes_freed += os.stat(path, follow_symlinks=False).st_size
        report.packs_removed += 1
        durable.remove(path)
        crash_point("prune.pack")
    if report.packs_removed:
        durable.sync_directory(repository.packs_path)


def _names(directory: str) -> list[str]:
    """What is in a directory; nothing when it is not there: who made the repository may have been killed before."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _remove_temporaries(repository: Opened, running: list[str]) -> None:
    directories = [repository.path, *(os.path.join(repository.points_path, name) for name in repository.directories())]
    for directory in directories:
        if os.path.basename(directory) in running:
            continue
        for name in filter(names.is_temporary, os.listdir(directory)):
            durable.remove(os.path.join(directory, name))
