"""restore: datasets of a recovery point, bit for bit, to files, a block device or a stream.

Every chunk is checked against its digest on the way. Several datasets are restored to a directory, and their files
are named only when all of them are whole and durable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from timezero._linux.stack import Identity, identity_of
from timezero.errors import TimezeroError, UsageError, VerificationError
from timezero.jobs import moving, targets
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.targets import Target
from timezero.repository import DatasetRecord, RecoveryPoint, Repository
from timezero.repository.names import encode_component


class RestoreResult(NamedTuple):
    """What was restored: {dataset: target}, bytes, seconds."""

    point: str
    targets: dict[str, str]
    size: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return self._asdict()


def restore(
    repository: str,
    point: str,
    target: str,
    *,
    dataset: str | None = None,
    force: bool = False,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
) -> RestoreResult:
    """Restore `dataset` of a recovery point to `target`, or all of its datasets.

    point: an id, a unique prefix, or "latest". target: a file, a block device or "-"; a directory takes every dataset
    under its name, and is made when several datasets go to a place that does not exist. force: replace files,
    overwrite a device that is in use. Raises VerificationError when stored data is damaged, TimezeroError and its
    kinds otherwise; then nothing is left that looks restored.
    """
    recovery_point = Repository(repository).point(point)
    chosen = [recovery_point.dataset(dataset)] if dataset is not None else list(recovery_point.datasets)
    with ExitStack() as stack:
        places = _places(stack, recovery_point, chosen, target)
        for path in places.values():
            targets.check_target(path, force=force)
            _check_outside(repository, path)
            if path != targets.STREAM:
                targets.check_apart(path, "the target", _sources(repository))
        return _Restore(stack, recovery_point, chosen, places, force).run(mover or MoverOptions(), progress)


def _places(stack: ExitStack, point: RecoveryPoint, chosen: Sequence[DatasetRecord], target: str) -> dict[str, str]:
    """{dataset: path}."""
    if os.path.isdir(target):
        return {record.name: os.path.join(target, _file_name(record.name)) for record in chosen}
    if len(chosen) == 1:
        return {chosen[0].name: target}
    if os.path.lexists(target) or target == targets.STREAM:
        names = ", ".join(record.name for record in chosen)
        raise UsageError(
            f"{target}: {point.id} has several datasets ({names}): restore one, POINT/DATASET, or all to a directory"
        )
    try:
        os.mkdir(target, 0o700)
    except OSError as error:
        raise TimezeroError(f"{target}: cannot be made: {error.strerror}") from error
    stack.callback(_remove_if_empty, target)
    return _places(stack, point, chosen, target)


def _file_name(dataset: str) -> str:
    """The dataset's name when it can name a file, else its encoding."""
    plain = "/" not in dataset and dataset not in (".", "..") and len(os.fsencode(dataset)) <= 200
    return dataset if plain else encode_component(dataset)


def _remove_if_empty(directory: str) -> None:
    with suppress(OSError):  # restored files are in it
        os.rmdir(directory)


def _check_outside(repository: str, path: str) -> None:
    root = os.path.realpath(repository)
    if path != targets.STREAM and os.path.commonpath([root, os.path.realpath(path)]) == root:
        raise UsageError(f"{path}: the target lies in the repository: choose another place")


def _sources(repository: str) -> list[tuple[str, str, Identity]]:
    return [("repository", repository, identity_of(os.stat(repository)))]


class _Restore:
    """One restore, resources on `stack`."""

    def __init__(
        self,
        stack: ExitStack,
        point: RecoveryPoint,
        chosen: Sequence[DatasetRecord],
        places: Mapping[str, str],
        force: bool,
    ) -> None:
        self._stack = stack
        self._point = point
        self._chosen = chosen
        self._places = places
        self._indexes = {record.name: point.entries(record) for record in chosen}
        self._packs = stack.enter_context(point.open_packs())
        self._targets: dict[str, Target] = {
            record.name: stack.enter_context(targets.open_target(places[record.name], record.size, force=force))
            for record in chosen
        }

    def run(self, options: MoverOptions, progress: ProgressCallback | None) -> RestoreResult:
        """Move and publish."""
        total = sum(record.size for record in self._chosen)
        meter, done, seconds = Meter(progress, total), 0, 0.0
        for chunk_size in sorted({record.chunk_size for record in self._chosen}):
            group = [record for record in self._chosen if record.chunk_size == chunk_size]
            seconds += self._move(group, chunk_size, options, meter, done)
            done += sum(record.size for record in group)
        meter.finishing()
        for target in self._targets.values():
            target.publish()
        return RestoreResult(self._point.id, dict(self._places), total, seconds)

    def _move(
        self, group: Sequence[DatasetRecord], chunk_size: int, options: MoverOptions, meter: Meter, before: int
    ) -> float:
        with moving.Moving(options, chunk_size, [record.size for record in group]) as machine:
            for record in group:
                target = self._targets[record.name]
                source = index_source(record, self._indexes[record.name], self._packs)
                machine.add(record.name, source, target.sink(), target=target.name)
            for record in group:
                self._targets[record.name].begin()
            machine.run(lambda done: meter.update(before + done))
            moving.raise_first(machine.transfers)
            for transfer in machine.transfers:
                if not isinstance(self._targets[transfer.source], targets.StreamTarget):
                    machine.sync(transfer)
            reports = [transfer.report for transfer in machine.transfers]
        began, ended = min(r["started_ns"] for r in reports), max(r["ended_ns"] for r in reports)
        return float(ended - began) / 1e9


def index_source(record: DatasetRecord, entries: bytes, packs: Mapping[int, int], *, size: int | None = None) -> Any:
    """The mover's source for a stored dataset. Raises VerificationError for entries that cannot be."""
    from timezero._native.mover import Source

    try:
        return Source.index(entries, record.size if size is None else size, record.chunk_size, packs)
    except OSError as error:
        raise VerificationError(f"{record.name}: its index has entries that cannot be: {error.strerror}") from error
