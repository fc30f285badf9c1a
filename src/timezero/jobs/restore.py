"""restore: datasets of a recovery point, bit for bit: volumes to files, block devices or a stream, files to files.

Every chunk is checked against its digest on the way. Several volumes are restored to a directory, and their images
are named only when all of them are whole and durable. Files each get their name when they are; the result says which
did.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero._linux.stack import Identity, identity_of
from timezero.errors import PartialError, TimezeroError, UsageError, VerificationError
from timezero.jobs import moving, targets
from timezero.jobs.batches import packs_used
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.restore_files import Files
from timezero.jobs.targets import FileTarget, Target
from timezero.jobs.trees import Parts, Tree
from timezero.repository import DatasetRecord, RecoveryPoint, Repository
from timezero.repository.names import encode_component

if TYPE_CHECKING:
    from timezero._native.mover import Source


class RestoreResult(NamedTuple):
    """What was restored: {dataset: target}, bytes, seconds.

    failed: {dataset: why it was not}. notes: {dataset: what of its owner, mode, times and attributes could not be
    given to it}.
    """

    point: str
    targets: dict[str, str]
    size: int
    seconds: float
    failed: Mapping[str, str] = MappingProxyType({})
    notes: Mapping[str, list[str]] = MappingProxyType({})

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self._asdict(), "failed": dict(self.failed), "notes": dict(self.notes)}


class PartialRestoreError(PartialError):
    """Some files could not be restored; `result` says which, and which are there."""

    def __init__(self, result: RestoreResult) -> None:
        self.result = result
        first = next(iter(result.failed.values()))
        more = f" (and {len(result.failed) - 1} more)" if len(result.failed) > 1 else ""
        super().__init__(f"{first}{more}: the other {len(result.targets)} datasets are restored")


def restore(
    repository: str,
    point: str,
    target: str | None,
    *,
    dataset: str | None = None,
    in_place: bool = False,
    force: bool = False,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
) -> RestoreResult:
    """Restore the datasets of a recovery point that `dataset` means, or all of them, to `target`.

    point: an id, a unique prefix, or "latest". dataset: a name, a directory of files or a glob, as
    timezero.repository.patterns has them. target: a file, a block device or "-" for one dataset; a directory takes
    every volume under its name and every file under its whole path, and is made when there is none. in_place: files
    go where they came from, and `target` is None. force: replace files, overwrite a device that is in use.

    Raises PartialRestoreError when some files could not be restored, and others are. When nothing could be: errors of
    what went wrong, VerificationError for damaged data, TimezeroError and its kinds; then nothing is left that looks
    restored.
    """
    recovery_point = Repository(repository).point(point)
    chosen = list(recovery_point.datasets) if dataset is None else recovery_point.choose(dataset)
    with ExitStack() as stack:
        plan = _Plan(stack, repository, recovery_point, chosen, force)
        if in_place:
            if target is not None:
                raise UsageError(f"{target}: a target, and --in-place: choose one of them")
            plan.in_place()
        elif target is None:
            raise UsageError("no target was named: name one, or restore files with --in-place")
        else:
            plan.to(target, single=dataset == chosen[0].name)
        return _Restore(stack, plan, mover or MoverOptions(), progress).run()


class _Plan:
    """What goes where. `images`: {dataset: path} of what goes to a target of its own; `files`: what goes to a tree."""

    def __init__(
        self, stack: ExitStack, repository: str, point: RecoveryPoint, chosen: Sequence[DatasetRecord], force: bool
    ) -> None:
        self._stack = stack
        self._repository = repository
        self.point = point
        self.chosen = chosen
        self.force = force
        self.images: dict[str, str] = {}
        self.files: Files | None = None

    def in_place(self) -> None:
        """Files to where they came from. Raises UsageError for volumes."""
        for record in self.chosen:
            if record.inode is None:
                raise UsageError(f"{record.name}: is no file: restore it to a target of its own, not --in-place")
        self._plant("/", self.chosen)

    def to(self, target: str, *, single: bool) -> None:
        """To a target. single: exactly one dataset was named, by its name."""
        if not os.path.isdir(target):
            if len(self.chosen) == 1 and (single or self.chosen[0].inode is None):
                self._image(self.chosen[0], target)
                return
            self._make(target)
        files = [record for record in self.chosen if record.inode is not None]
        for record in self.chosen:
            if record.inode is None:
                self._image(record, os.path.join(target, _file_name(record.name)))
        if files:
            self._plant(target, files)
        self._check_collisions(target)

    def _make(self, target: str) -> None:
        if os.path.lexists(target) or target == targets.STREAM:
            raise UsageError(
                f"{target}: is no directory, and {len(self.chosen)} datasets of {self.point.id} may go there "
                f"({_some(record.name for record in self.chosen)}): restore one, POINT/DATASET, or name a directory"
            )
        try:
            os.mkdir(target, 0o700)
        except OSError as error:
            raise TimezeroError(f"{target}: cannot be made: {error.strerror}") from error
        self._stack.callback(_remove_if_empty, target)

    def _image(self, record: DatasetRecord, path: str) -> None:
        targets.check_target(path, force=self.force)
        _check_outside(self._repository, path)
        if path != targets.STREAM:
            targets.check_apart(path, "the target", _sources(self._repository))
        self.images[record.name] = path

    def _plant(self, root: str, records: Sequence[DatasetRecord]) -> None:
        """Files below `root`, each under its whole path."""
        try:
            tree = self._stack.enter_context(Tree(root))
        except OSError as error:
            raise TimezeroError(f"{root}: cannot be written: {error.strerror}") from error
        places: dict[str, Parts] = {}
        for record in records:
            assert record.path is not None
            places[record.name] = tuple(record.path[1:].split("/"))
        self.files = Files(tree, places, self.force)
        there = [path for name in places if os.path.lexists(path := self.files.path(name))]
        if there and not self.force:
            more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
            raise TimezeroError(f"{there[0]}: exists already{more}: replace it with --force, or name another target")
        devices: set[int] = set()
        for directory in {parts[:-1] for parts in places.values()}:
            path = tree.path(directory)
            _check_outside(self._repository, path)
            device = os.stat(nearest := _nearest(path)).st_dev
            if device not in devices:
                devices.add(device)
                targets.check_apart(nearest, "the target", _sources(self._repository))

    def _check_collisions(self, target: str) -> None:
        """No two datasets to one place, none to what is a directory for another. Raises UsageError."""
        taken = {os.path.basename(path): name for name, path in self.images.items()}
        owners: dict[Parts, str] = {(base,): name for base, name in taken.items()}
        places = self.files.places if self.files else {}
        for name, parts in places.items():
            other = owners.setdefault(parts, name)
            if other != name:
                raise UsageError(
                    f"{target}: {name} and {other} would go to one place: restore them one after the other"
                )
        for name, parts in places.items():
            for depth in range(1, len(parts)):
                if parts[:depth] in owners:
                    other = owners[parts[:depth]]
                    raise UsageError(f"{target}: {other} would stand in the way of {name}: restore them one by one")


def _some(names: Iterable[str], most: int = 5) -> str:
    told = list(names)
    return ", ".join(told[:most]) + (", ..." if len(told) > most else "")


def _nearest(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


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

    def __init__(self, stack: ExitStack, plan: _Plan, options: MoverOptions, progress: ProgressCallback | None) -> None:
        self._plan = plan
        self._options = options
        self._meter = Meter(progress, sum(record.size for record in plan.chosen))
        self._indexes: dict[str, bytes] = {}
        self._images = [record for record in plan.chosen if record.name in plan.images]
        # Everything is open before the first chunk is read: a prune meanwhile takes nothing away.
        for record in plan.chosen:
            try:
                self._indexes[record.name] = plan.point.entries(record)
            except VerificationError as error:
                if record.name in plan.images:
                    raise
                assert plan.files is not None
                plan.files.fail(record, error)
        self._packs = stack.enter_context(plan.point.open_packs())
        self._targets: dict[str, Target] = {
            record.name: stack.enter_context(
                targets.open_target(plan.images[record.name], record.size, force=plan.force)
            )
            for record in self._images
        }
        self._notes: dict[str, list[str]] = {}

    def run(self) -> RestoreResult:
        """Move and publish: images first, all or none, then files."""
        begin = time.monotonic()
        done, seconds = 0, 0.0
        for chunk_size in sorted({record.chunk_size for record in self._images}):
            group = [record for record in self._images if record.chunk_size == chunk_size]
            seconds += self._move(group, chunk_size, done)
            done += sum(record.size for record in group)
        if self._images:
            if self._plan.files is None:
                self._meter.finishing()
            self._describe()
            for target in self._targets.values():
                target.publish()
        if self._plan.files is None:
            return RestoreResult(self._plan.point.id, dict(self._plan.images), done, seconds, notes=self._notes)
        self._restore_files(self._plan.files, done)
        return self._result(self._plan.files, time.monotonic() - begin)

    def _result(self, files: Files, seconds: float) -> RestoreResult:
        restored = self._plan.images | {name: files.path(name) for name in files.restored}
        result = RestoreResult(
            self._plan.point.id,
            restored,
            sum(record.size for record in self._plan.chosen if record.name in restored),
            seconds,
            {name: str(error) for name, error in files.failed.items()},
            self._notes | {name: notes for name, notes in files.notes.items() if name in restored},
        )
        if files.failed and not restored:
            raise next(iter(files.failed.values()))
        if files.failed:
            raise PartialRestoreError(result)
        return result

    def _restore_files(self, files: Files, done: int) -> None:
        records = [record for record in self._plan.chosen if record.name in files.places]
        good = [record for record in records if record.name not in files.failed]
        # Only the packs that a file needs: each of its transfer's is a descriptor.
        packs = {record.name: {n: self._packs[n] for n in self._needed(record)} for record in good}
        files.restore(
            good,
            lambda record: index_source(record, self._indexes[record.name], packs[record.name]),
            max((len(needed) for needed in packs.values()), default=0),
            self._options,
            self._meter,
            done,
        )
        self._meter.finishing()

    def _needed(self, record: DatasetRecord) -> set[int]:
        if len(self._packs) == 1:
            return set(self._packs)
        return packs_used(self._indexes[record.name]) & self._packs.keys()

    def _describe(self) -> None:
        """A file that is restored to a file has its metadata all the same."""
        for record in self._images:
            target = self._targets[record.name]
            if record.inode is not None and isinstance(target, FileTarget):
                problems = record.inode.metadata.apply(target.fd)
                if problems:
                    self._notes[record.name] = problems

    def _move(self, group: Sequence[DatasetRecord], chunk_size: int, before: int) -> float:
        with moving.Moving(self._options, chunk_size, [record.size for record in group]) as machine:
            for record in group:
                target = self._targets[record.name]
                source = index_source(record, self._indexes[record.name], self._packs)
                machine.add(record.name, source, target.sink(), target=target.name)
            for record in group:
                self._targets[record.name].begin()
            machine.run(lambda done: self._meter.update(before + done))
            moving.raise_first(machine.transfers)
            for transfer in machine.transfers:
                if not isinstance(self._targets[transfer.source], targets.StreamTarget):
                    machine.sync(transfer)
            reports = [transfer.report for transfer in machine.transfers]
        began, ended = min(r["started_ns"] for r in reports), max(r["ended_ns"] for r in reports)
        return float(ended - began) / 1e9


def index_source(record: DatasetRecord, entries: bytes, packs: Mapping[int, int], *, size: int | None = None) -> Source:
    """The mover's source for a stored dataset. Raises VerificationError for entries that cannot be."""
    from timezero._native.mover import Source

    try:
        return Source.index(entries, record.size if size is None else size, record.chunk_size, packs)
    except OSError as error:
        if error.errno in (errno.EBADMSG, errno.EINVAL):
            raise VerificationError(f"{record.name}: its index has entries that cannot be: {error.strerror}") from error
        raise TimezeroError(f"{record.name}: its packs cannot be read: {error.strerror}") from error
