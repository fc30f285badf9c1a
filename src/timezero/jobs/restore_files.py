"""Restoring datasets that are files: each whole, durable and with its metadata before it has its name.

In batches, of one mover each. A batch is made without names, moved, given its metadata, made durable, and then named;
the files of a batch that fails, or is interrupted, are as they were. What fails is told for each file; the others go
on.

Errors: TimezeroError for what concerns all files; those of one are kept in `failed`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from timezero import _linux
from timezero._crash import crash_point
from timezero.errors import TimezeroError
from timezero.jobs.batches import batches
from timezero.jobs.damage import Losses
from timezero.jobs.moving import Moving, Transfer
from timezero.jobs.newfile import NewFile
from timezero.jobs.options import MoverOptions
from timezero.jobs.progress import Meter
from timezero.jobs.targets import DAMAGED_SUFFIX
from timezero.jobs.trees import SYNC_EACH_MAX, Parts, Tree, syncfs_tells
from timezero.repository import DatasetRecord

if TYPE_CHECKING:
    from timezero._native.mover import Sink, Source

#: Descriptors of a file: it, its directory, the sink's two; a pack more each.
_DESCRIPTORS = 4
#: Of no use to go on after.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class Files:
    """Which files go where, and how that went.

    places: {dataset: parts of its path below the tree}. restored: those that are there now, in the order in which they
    came. failed: why others are not. notes: what of their metadata could not be applied.
    """

    def __init__(self, tree: Tree, places: Mapping[str, Parts], replace: bool) -> None:
        self.tree = tree
        self.places = dict(places)
        self.replace = replace
        self.restored: list[str] = []
        self.failed: dict[str, TimezeroError] = {}
        self.notes: dict[str, list[str]] = {}

    def path(self, dataset: str) -> str:
        """Where it goes."""
        return self.tree.path(self.places[dataset])

    def restore(
        self,
        records: Sequence[DatasetRecord],
        source: Callable[[DatasetRecord], Source],
        packs: int,
        options: MoverOptions,
        meter: Meter,
        done: int,
        losses: Losses,
        place: str,
    ) -> None:
        """Restore files. source: the mover's, for one of them; packs: descriptors it has; done: bytes before.

        place: what they are read from, for errors.
        losses: takes down what of them was found damaged and is zeros now; these files are called so.
        """
        stopped: TimezeroError | None = None
        for batch in batches(records, _DESCRIPTORS + packs):
            if stopped is not None:
                for record in batch:
                    self.fail(record, TimezeroError(f"{self.path(record.name)}: not restored, because of: {stopped}"))
                continue
            with ExitStack() as stack:
                stack.callback(self.tree.forget)
                stopped = _Batch(self, stack, losses, place).run(batch, source, options, partial(_add, meter, done))
            done += sum(record.size for record in batch)
            meter.update(done)

    def fail(self, record: DatasetRecord, error: TimezeroError) -> None:
        """Note why a file cannot be restored; the first reason counts."""
        self.failed.setdefault(record.name, _without_frames(error))

    def refuse(self, record: DatasetRecord, error: OSError, what: str) -> TimezeroError:
        """Note that a file cannot be restored."""
        path = self.path(record.name)
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            reason = f"{error.filename} is no directory, and no link is followed: restore to another place"
        wrong = TimezeroError(f"{path}: {what}: {reason}")
        self.fail(record, wrong)
        return wrong


def _without_frames(error: TimezeroError) -> TimezeroError:
    """The frames of its traceback hold what was open for a file: of thousands, more than a process may have."""
    reason: BaseException | None = error
    while reason is not None:
        reason.__traceback__ = None
        reason = reason.__cause__ or reason.__context__
    return error


def _add(meter: Meter, before: int, moved: int) -> None:
    meter.update(before + moved)


class _Batch:
    """Files that are restored together; what is open of them is on `stack`."""

    def __init__(self, files: Files, stack: ExitStack, losses: Losses, place: str) -> None:
        self._files = files
        self._place = place
        self._losses = losses
        self._stack = stack
        self._made: dict[str, NewFile] = {}

    def run(
        self,
        batch: Sequence[DatasetRecord],
        source: Callable[[DatasetRecord], Source],
        options: MoverOptions,
        watch: Callable[[int], None],
    ) -> TimezeroError | None:
        """Make, move, name. What is in the way of all files to come, or None."""
        stopped = self._make(batch)
        # Those that were made before one could not be are as good as any; without their data they must not be named.
        stopped = (self._move(batch, source, options, watch) if self._made else None) or stopped
        crash_point("tree.moved")
        for record in batch:
            if record.name in self._made and record.inode is not None:
                problems = record.inode.metadata.apply(self._made[record.name].fd)
                if problems:
                    self._files.notes[record.name] = problems
        stopped = self._sync(batch) or stopped
        crash_point("tree.synced")
        self._name(batch)
        return stopped

    def _drop(self, name: str) -> None:
        self._made.pop(name).close()

    def _make(self, batch: Sequence[DatasetRecord]) -> TimezeroError | None:
        for record in batch:
            parts = self._files.places[record.name]
            try:
                file = NewFile(self._files.tree.directory(parts[:-1]), parts[-1])
            except OSError as error:
                wrong = self._files.refuse(record, error, "cannot be made")
                if error.errno in _FATAL:
                    return self._refuse_rest(batch, wrong)
                continue
            self._stack.callback(file.close)
            self._made[record.name] = file
        return None

    def _refuse_rest(self, batch: Sequence[DatasetRecord], wrong: TimezeroError) -> TimezeroError:
        for record in batch:
            if record.name not in self._made:
                self._files.fail(record, wrong)
        return wrong

    def _move(
        self,
        batch: Sequence[DatasetRecord],
        source: Callable[[DatasetRecord], Source],
        options: MoverOptions,
        watch: Callable[[int], None],
    ) -> TimezeroError | None:
        transfers: dict[str, Transfer] = {}
        with Moving(options, batch[0].chunk_size, [record.size for record in batch], indexed=True) as machine:
            for record in batch:
                if record.name not in self._made:
                    continue
                path = self._files.path(record.name)
                try:
                    sink = _sink(self._made[record.name], record.size, path)
                    transfers[record.name] = machine.add(
                        record.name, source(record), sink, target=path, place=self._place
                    )
                except TimezeroError as error:
                    self._files.fail(record, error)
                    self._drop(record.name)
            if transfers:
                machine.run(watch)
            for record in batch:
                transfer = transfers.get(record.name)
                if transfer is not None and transfer.error() is None:
                    self._look(record, machine.outcomes(transfer))
        stopped = None
        for name, transfer in transfers.items():
            failure = transfer.error()
            if failure is None:
                continue
            self._files.failed.setdefault(name, failure)
            self._drop(name)
            if transfer.report["side"] == "sink" and abs(int(transfer.report["error"])) in _FATAL:
                stopped = failure
        return stopped

    def _look(self, record: DatasetRecord, outcomes: bytes) -> None:
        """A file that is not whole does not get the name of one that is."""
        if not self._losses.note(record, outcomes):
            return
        parts = self._files.places[record.name]
        self._made[record.name].name = parts[-1] + DAMAGED_SUFFIX
        self._files.places[record.name] = (*parts[:-1], parts[-1] + DAMAGED_SUFFIX)

    def _sync(self, batch: Sequence[DatasetRecord]) -> TimezeroError | None:
        """Make the files durable; who cannot be is dropped."""
        devices: dict[int, list[str]] = {}
        for name, file in self._made.items():
            devices.setdefault(os.fstat(file.fd).st_dev if file.unnamed else -1, []).append(name)
        stopped = None
        for device, found in devices.items():
            # A network's or a user's file system has no files without a name, and syncfs there tells nothing.
            whole = device >= 0 and len(found) > SYNC_EACH_MAX and syncfs_tells()
            for group in [found] if whole else [[name] for name in found]:
                fd = self._made[group[0]].fd
                try:
                    (_linux.syncfs if whole else os.fsync)(fd)
                except OSError as error:
                    for record in batch:
                        if record.name in group:
                            stopped = self._files.refuse(record, error, "cannot be made durable")
                            self._drop(record.name)
        return stopped

    def _name(self, batch: Sequence[DatasetRecord]) -> None:
        tree, named = self._files.tree, []
        for record in batch:
            file = self._made.get(record.name)
            if file is None:
                continue
            try:
                file.publish(replace=self._files.replace)
            except FileExistsError:
                path = self._files.path(record.name)
                self._files.fail(
                    record, TimezeroError(f"{path}: was made by somebody else meanwhile: it is left alone")
                )
            except OSError as error:
                self._files.refuse(record, error, "cannot be given its name")
            else:
                crash_point("tree.named")
                tree.changed(self._files.places[record.name][:-1])
                named.append(record)
        try:
            tree.sync()
        except OSError as error:
            for record in named:
                self._files.refuse(record, error, "is there, but its name cannot be made durable")
        else:
            crash_point("tree.durable")
            self._files.restored += [record.name for record in named]


def _sink(file: NewFile, size: int, path: str) -> Sink:
    from timezero._native.mover import Sink

    try:
        return Sink.image(file.fd, size, fresh=True)
    except OSError as error:
        raise TimezeroError(f"{path}: cannot be written: {error.strerror}") from error
