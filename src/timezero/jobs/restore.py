"""restore: datasets of a recovery point, bit for bit: volumes to files, block devices or a stream, files to files.

Every chunk is checked against its digest on the way. Several volumes are restored to a directory, and their images
are named only when all of them are whole and durable. Files each get their name when they are; the result says which
did.

Damaged data ends a restore, unless what is sound is to be salvaged: then zeros take the place of the rest, the file is
called so (targets.DAMAGED_SUFFIX), and the result says what is lost.

A restore that is to be gone on with keeps no record of how far it came. A chunk of the target counts when it matches
its digest, and is written when it does not: so it is right whatever happened in between, at the price of reading the
target once, and of nothing else.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero.errors import PartialError, TimezeroError, UsageError, VerificationError
from timezero.jobs import mapfile, moving, targets
from timezero.jobs.batches import packs_used
from timezero.jobs.damage import Loss, Losses
from timezero.jobs.in_place import InPlace
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.restore_files import Files
from timezero.jobs.restore_plan import Plan, Way
from timezero.jobs.targets import FileTarget, Target
from timezero.repository import DatasetRecord, Repository

if TYPE_CHECKING:
    from timezero._native.mover import Source


class RestoreResult(NamedTuple):
    """What was restored: {dataset: target}, bytes, seconds.

    failed: {dataset: why it was not}. notes: {dataset: what of its owner, mode, times and attributes could not be
    given to it}. written, kept: bytes of images that were written, and that were there already. losses: what is damaged
    of what was salvaged.
    """

    point: str
    targets: dict[str, str]
    size: int
    seconds: float
    failed: Mapping[str, str] = MappingProxyType({})
    notes: Mapping[str, list[str]] = MappingProxyType({})
    written: int = 0
    kept: int = 0
    losses: tuple[Loss, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        losses = [loss.to_json() for loss in self.losses]
        return {**self._asdict(), "failed": dict(self.failed), "notes": dict(self.notes), "losses": losses}


class PartialRestoreError(PartialError):
    """Some files could not be restored; `result` says which, and which are there."""

    def __init__(self, result: RestoreResult) -> None:
        self.result = result
        first = next(iter(result.failed.values()))
        more = f" (and {len(result.failed) - 1} more)" if len(result.failed) > 1 else ""
        super().__init__(f"{first}{more}: the other {len(result.targets)} datasets are restored")


class DamagedRestoreError(VerificationError):
    """Of damaged data what is sound was restored; `result` says what is lost."""

    def __init__(self, result: RestoreResult, kept: bool) -> None:
        self.result = result
        loss = result.losses[0]
        target = result.targets[loss.dataset]
        if loss.chunks:
            text = f"{loss}: {'left as it was' if kept else 'zeros'} in {target}"
        else:
            text = f"{loss.dataset}: its index is damaged: every chunk in {target} is sound, its place is not proven"
        more = f" (and {len(result.losses) - 1} more datasets)" if len(result.losses) > 1 else ""
        failed = f"; {len(result.failed)} others are not restored" if result.failed else ""
        super().__init__(f"{text}{more}{failed}")


def restore(
    repository: str,
    point: str,
    target: str | None,
    *,
    dataset: str | None = None,
    in_place: bool = False,
    force: bool = False,
    salvage: bool = False,
    delta: bool = False,
    resume: bool = False,
    map_file: str | None = None,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
) -> RestoreResult:
    """Restore the datasets of a recovery point that `dataset` means, or all of them, to `target`.

    point: an id, a unique prefix, or "latest". dataset: a name, a directory of files or a glob, as
    timezero.repository.patterns has them. target: a file, a block device or "-" for one dataset; a directory takes
    every volume under its name and every file under its whole path, and is made when there is none. in_place: files
    go where they came from, and `target` is None. force: replace files, overwrite a device that is in use.

    salvage: restore what is sound of damaged data, with zeros for the rest; a file that is not whole is called
    TARGET.damaged. delta: write only what differs from what the target holds, in place; with `salvage` it stays as it
    is where the data is damaged. resume: keep what is restored when the job does not come to its end, and go on with
    what an earlier one kept; for a device the same as delta, with zeros for damage. map_file: with `salvage`, a mapfile
    as ddrescue has them.

    Raises PartialRestoreError when some files could not be restored, and others are; DamagedRestoreError when not all
    of what was salvaged is whole. When nothing could be restored: errors of what went wrong, VerificationError for
    damaged data, TimezeroError and its kinds; then nothing is left that looks restored.
    """
    way = Way(force, salvage, delta, resume, map_file)
    way.check()
    with ExitStack() as stack:
        if not salvage:
            stack.enter_context(_pointing_to_salvage())
        recovery_point = Repository(repository).point(point, salvage=salvage)
        chosen = list(recovery_point.datasets) if dataset is None else recovery_point.choose(dataset)
        plan = Plan(stack, repository, recovery_point, chosen, way)
        if in_place:
            if target is not None:
                raise UsageError(f"{target}: a target, and --in-place: choose one of them")
            plan.in_place()
        elif target is None:
            raise UsageError("no target was named: name one, or restore files with --in-place")
        else:
            plan.to(target, single=dataset == chosen[0].name)
        plan.check()
        return _Restore(stack, plan, mover or MoverOptions(), progress).run()


@contextmanager
def _pointing_to_salvage() -> Iterator[None]:
    """Adds to damage that ends a restore what can be done about it."""
    try:
        yield
    except VerificationError as error:
        error.args = (f"{error}; `timezero verify` lists what is damaged, --salvage restores the rest",)
        raise


class _Restore:
    """One restore, resources on `stack`."""

    def __init__(self, stack: ExitStack, plan: Plan, options: MoverOptions, progress: ProgressCallback | None) -> None:
        self._plan = plan
        self._options = options
        self._meter = Meter(progress, sum(record.size for record in plan.chosen))
        self._indexes: dict[str, bytes] = {}
        self._losses = Losses(plan.point.id)
        self._written = self._kept = 0
        way = plan.way
        self._images = [record for record in plan.chosen if record.name in plan.images]
        # Everything is open before the first chunk is read: a prune meanwhile takes nothing away.
        for record in plan.chosen:
            try:
                self._indexes[record.name] = self._entries(record)
            except VerificationError as error:
                if record.name in plan.images:
                    raise
                assert plan.files is not None
                plan.files.fail(record, error)
        if way.salvage:
            self._packs, _ = stack.enter_context(plan.point.open_packs_as_they_are())
        else:
            self._packs = stack.enter_context(plan.point.open_packs())
        self._targets: dict[str, Target] = {
            record.name: stack.enter_context(
                targets.open_target(
                    plan.images[record.name],
                    record.size,
                    force=way.force,
                    delta=way.delta,
                    resume=way.resume,
                    keep=way.salvage,
                    owner=None if record.inode is None else record.inode.metadata.uid,
                )
            )
            for record in self._images
        }
        self._notes: dict[str, list[str]] = {}

    def _entries(self, record: DatasetRecord) -> bytes:
        """Its index entries. Raises VerificationError, salvaging only when there are none."""
        if not self._plan.way.salvage:
            return self._plan.point.entries(record)
        entries, problem = self._plan.point.entries_as_they_are(record)
        if problem is not None:
            if not entries:
                raise VerificationError(f"{record.name}: nothing can be salvaged: {problem}")
            self._losses.index_problems[record.name] = problem
        return entries

    def run(self) -> RestoreResult:
        """Move and publish: images first, all or none, then files."""
        begin = time.monotonic()
        with targets.telling_left(*self._targets.values()):
            done, seconds = self._restore_images()
        files = self._plan.files
        if files is not None:
            self._restore_files(files, done)
            seconds = time.monotonic() - begin
        return self._result(files, seconds)

    def _restore_images(self) -> tuple[int, float]:
        """Their bytes, and the seconds that it took."""
        done, seconds = 0, 0.0
        for chunk_size in sorted({record.chunk_size for record in self._images}):
            group = [record for record in self._images if record.chunk_size == chunk_size]
            seconds += self._move(group, chunk_size, done)
            done += sum(record.size for record in group)
        if self._images:
            if self._plan.files is None:
                self._meter.finishing()
            self._describe()
            for name, target in self._targets.items():
                target.publish(damaged=name in self._losses.found)
                if not isinstance(target, targets.StreamTarget):
                    self._plan.images[name] = target.name
        return done, seconds

    def _result(self, files: Files | None, seconds: float) -> RestoreResult:
        failed = {} if files is None else files.failed
        restored, notes = dict(self._plan.images), dict(self._notes)
        if files is not None:
            restored |= {name: files.path(name) for name in files.restored}
            notes |= {name: told for name, told in files.notes.items() if name in restored}
        result = RestoreResult(
            self._plan.point.id,
            restored,
            sum(record.size for record in self._plan.chosen if record.name in restored),
            seconds,
            {name: str(error) for name, error in failed.items()},
            notes,
            self._written,
            self._kept,
            tuple(loss for name, loss in self._losses.found.items() if name in restored),
        )
        if failed and not restored:
            raise next(iter(failed.values()))
        if result.losses:
            target = self._targets.get(result.losses[0].dataset)
            raise DamagedRestoreError(result, kept=isinstance(target, InPlace) and self._plan.way.delta)
        if failed:
            raise PartialRestoreError(result)
        return result

    def _restore_files(self, files: Files, done: int) -> None:
        records = [record for record in self._plan.chosen if record.name in files.places]
        good = [record for record in records if record.name not in files.failed]
        # Only the packs that a file needs: each of its transfer's is a descriptor.
        packs = {record.name: {n: self._packs[n] for n in self._needed(record)} for record in good}
        files.restore(
            good,
            partial(self._file_source, packs),
            max((len(needed) for needed in packs.values()), default=0),
            self._options,
            self._meter,
            done,
            self._losses,
            self._plan.point.packs_path,
        )
        self._meter.finishing()

    def _file_source(self, packs: Mapping[str, Mapping[int, int]], record: DatasetRecord) -> Source:
        entries = self._indexes[record.name]
        return index_source(record, entries, packs[record.name], salvage=self._plan.way.salvage)

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
        with moving.Moving(self._options, chunk_size, [record.size for record in group], indexed=True) as machine:
            for record in group:
                target = self._targets[record.name]
                source = index_source(record, self._indexes[record.name], self._packs, salvage=self._plan.way.salvage)
                place = self._plan.point.packs_path
                machine.add(record.name, source, target.sink(), target=target.name, place=place)
            with machine.writing([self._targets[record.name] for record in group]):
                machine.run(lambda done: self._meter.update(before + done))
                moving.raise_first(machine.transfers)
                for transfer in machine.transfers:
                    if not isinstance(self._targets[transfer.source], targets.StreamTarget):
                        machine.sync(transfer)
            reports = [transfer.report for transfer in machine.transfers]
            for record, transfer in zip(group, machine.transfers, strict=True):
                self._settle(record, transfer, machine.outcomes(transfer))
        began, ended = min(r["started_ns"] for r in reports), max(r["ended_ns"] for r in reports)
        return float(ended - began) / 1e9

    def _settle(self, record: DatasetRecord, transfer: moving.Transfer, outcomes: bytes) -> None:
        """Note what became of an image's chunks."""
        self._written += int(transfer.report["bytes_written"])
        self._kept += int(transfer.report["bytes_kept"])
        if self._plan.way.salvage:
            self._losses.note(record, outcomes)
        if self._plan.way.map_file is not None:
            mapfile.write(self._plan.way.map_file, record, outcomes)


def index_source(
    record: DatasetRecord,
    entries: bytes,
    packs: Mapping[int, int],
    *,
    size: int | None = None,
    salvage: bool = False,
) -> Source:
    """The mover's source for a stored dataset. Raises VerificationError for impossible entries, unless `salvage`."""
    from timezero._native.mover import Source

    size = record.size if size is None else size
    try:
        return Source.index(entries, size, record.chunk_size, packs, salvage=salvage)
    except OSError as error:
        if error.errno in (errno.EBADMSG, errno.EINVAL):
            raise VerificationError(f"{record.name}: its index has entries that cannot be: {error.strerror}") from error
        raise TimezeroError(f"{record.name}: its packs cannot be read: {error.strerror}") from error
