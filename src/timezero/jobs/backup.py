"""backup: datasets with one T0 as a recovery point of a repository.

Order   everything is resolved and refused before anything is written; then the repository is opened or made, the
        recovery point's id locked, the mover allocated; then the application is suspended and goes on (logical
        completion); then data moves; then the session must end intact; then packs and indexes are made durable and
        the manifest is published (physical completion).
Part    of the datasets may fail, because their source cannot be read or changed while at rest: the others are
        committed, the manifest records the failures, and PartialError carries the result. A puncture, or a failure of
        the repository, fails everything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero._crash import crash_point
from timezero._linux.stack import Identity
from timezero._version import __version__
from timezero.errors import PartialError, TimezeroError, UsageError
from timezero.jobs import moving, options, targets
from timezero.jobs.at_rest import AtRest
from timezero.jobs.datasets import Designated, designate_all, split_files
from timezero.jobs.moving import Moving, Transfer
from timezero.jobs.options import FileOptions, MoverOptions, SessionOptions
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.serving import Served
from timezero.repository import DatasetRecord, FailureRecord, IndexHeader, Manifest, PointWriter, Repository
from timezero.repository.store import CHUNK_DEFAULT, TRACK_DEFAULT, check_usable
from timezero.units import format_instant

if TYPE_CHECKING:
    from timezero._native.mover import PackWriter
    from timezero.jobs.files import FileAtT0, Files
    from timezero.jobs.preflight import Preflight


class BackupResult(NamedTuple):
    """A committed recovery point.

    seconds: from the first chunk to the commit. hooks: of each by its text, microseconds of its steps. Of designated
    files: gone: names that nothing had any more at T0; aliases: {other name of a dataset: the dataset}; skipped: {name:
    why}, links and special files that a pattern or directory met. estimate: what was foreseen for sidefiles.
    """

    repository: str
    manifest: Manifest
    engine: str
    seconds: float
    doubts: dict[str, list[str]]
    hooks: Mapping[str, dict[str, int]] = MappingProxyType({})
    gone: tuple[str, ...] = ()
    aliases: Mapping[str, str] = MappingProxyType({})
    skipped: Mapping[str, str] = MappingProxyType({})
    estimate: Preflight | None = None

    @property
    def id(self) -> str:
        """The recovery point's id."""
        return self.manifest.id

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "repository": self.repository,
            "t0": format_instant(self.manifest.t0_ns),
            **self.manifest.to_json(),
            "engine": self.engine,
            "seconds": self.seconds,
            "doubts": self.doubts,
            "hooks": dict(self.hooks),
            "gone": list(self.gone),
            "aliases": dict(self.aliases),
            "skipped": dict(self.skipped),
            "estimate": self.estimate.to_json() if self.estimate else None,
        }


class PartialBackupError(PartialError):
    """Some datasets failed; `result` is the recovery point that holds the others."""

    def __init__(self, result: BackupResult) -> None:
        self.result = result
        failed = result.manifest.failed
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        super().__init__(f"{failed[0].error}{more}: {result.id} holds the other datasets only")


def backup(
    repository: str,
    datasets: Sequence[str],
    *,
    fuzzy: bool = False,
    chunk_size: int | None = None,
    session: SessionOptions | None = None,
    files: FileOptions | None = None,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
    foresee: Callable[[Preflight], None] | None = None,
) -> BackupResult:
    """Back up datasets, the served volumes among them, and files on them, with one T0.

    repository: its directory; made on first use when missing or empty. datasets: names of served volumes, VOLUME:/path
    and VOLUME:/pattern for files on their file systems, paths of files and devices at rest, NAME=PATH. fuzzy: take
    sources at rest that change meanwhile. chunk_size: bytes, None for the repository's. foresee: told before T0 what
    the sidefiles will probably have to hold. Raises PartialBackupError when
    a part of the datasets was committed, TimezeroError and its kinds when nothing was.
    """
    session, mover = session or SessionOptions(), mover or MoverOptions()
    if chunk_size is None:
        chunk_size = _chunk_size(repository, session.track_size or 4096)
    options.check_sizes(session.track_size or 4096, chunk_size)
    if not datasets:
        raise UsageError("no dataset was named")
    texts, selections = split_files(datasets)
    designated = designate_all(texts)
    session.check_quiesce(served=bool(selections) or any(dataset.path is None for dataset in designated))
    check_usable(repository)
    with ExitStack() as stack:
        chosen = None
        if selections:
            from timezero.jobs.files import Files

            chosen = stack.enter_context(Files(selections, session, files or FileOptions()))
        return _Backup(stack, repository, designated, chosen, chunk_size, session, mover, fuzzy).run(progress, foresee)


def _chunk_size(path: str, track_size: int) -> int:
    check_usable(path)
    exists = os.path.exists(os.path.join(path, "repository.json"))
    return max(track_size, Repository(path).info.chunk_size if exists else CHUNK_DEFAULT)


class _Backup:
    """One backup, resources on `stack`."""

    def __init__(
        self,
        stack: ExitStack,
        path: str,
        designated: Sequence[Designated],
        files: Files | None,
        chunk_size: int,
        session: SessionOptions,
        mover: MoverOptions,
        fuzzy: bool,
    ) -> None:
        self._stack = stack
        self._designated = designated
        self._files = files
        self._at_t0: dict[str, FileAtT0] = {}
        self._chunk_size = chunk_size
        self._session = session
        self._mover = mover
        self.at_rest: dict[str, AtRest] = {}
        self.served: Served | None = None
        self.failed: dict[str, TimezeroError] = {}
        self._open_sources(fuzzy)
        at_rest_track = min(session.track_size or TRACK_DEFAULT, chunk_size)
        self._track_size = self.served.track_size if self.served else at_rest_track
        options.check_sizes(self._track_size, chunk_size)
        targets.check_apart(path, "the repository", self._identities())
        self._repository = Repository.open_or_create(path, chunk_size=chunk_size, track_size=self._track_size)

    def _open_sources(self, fuzzy: bool) -> None:
        seen: dict[Identity, str] = {}
        for dataset in self._designated:
            if dataset.path is None:
                continue
            source = self._stack.enter_context(AtRest(dataset.path, fuzzy=fuzzy))
            self.at_rest[dataset.name] = source
            if source.identity in seen:
                raise UsageError(f"{dataset.path}: is the same as {seen[source.identity]}: name it once")
            seen[source.identity] = dataset.path
        volumes = [dataset.name for dataset in self._designated if dataset.path is None]
        in_part = self._files.volumes if self._files else []
        for volume in in_part:
            if volume in volumes:
                raise UsageError(
                    f"volume {volume} is designated whole, and files on it are in it: name one or the other"
                )
        if volumes or in_part:
            self.served = self._stack.enter_context(Served([*volumes, *in_part], self._session, domain=in_part))
        if self._files and self.served:
            self._files.verify(self.served)
        self._session.check_quiesce(served=self.served is not None)  # files may all be read through

    def _sizes(self) -> list[int]:
        found = [source.size for source in self.at_rest.values()]
        found += [self.served.size(d.name) for d in self._designated if self.served and d.path is None]
        return found + (self._files.sizes() if self._files else [])

    def _identities(self) -> list[tuple[str, str, Identity]]:
        found = [(name, os.path.abspath(source.path), source.identity) for name, source in self.at_rest.items()]
        found += self.served.identities() if self.served else []
        return found + (self._files.identities() if self._files else [])

    def run(
        self, progress: ProgressCallback | None, foresee: Callable[[Preflight], None] | None = None
    ) -> BackupResult:
        """From the new id to the commit."""
        from timezero._native.mover import PackWriter

        started_ns = time.time_ns()
        writer = self._repository.writer()
        self._stack.push(writer)
        writer.begin()
        packs_fd = os.open(writer.packs_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, packs_fd)
        packs = PackWriter(packs_fd, writer.id)
        self._stack.callback(packs.close)
        machine = self._stack.enter_context(Moving(self._mover, self._chunk_size, self._sizes(), indexed=True))
        transfers = {dataset.name: self._add(machine, dataset, packs) for dataset in self._designated}
        estimate = self._foresee(machine)
        if estimate and foresee:
            foresee(estimate)
        begin = time.monotonic()
        crash_point("mover.ready")
        if self.served:
            self.served.suspend(self._files)
        crash_point("mover.suspended")
        transfers |= self._add_files(machine, packs)
        self._meter = Meter(progress, sum(transfer.size for transfer in transfers.values()))
        t0_ns = self.served.t0_ns if self.served else time.time_ns()
        machine.run(lambda done: self._watch(done, machine))
        crash_point("mover.moved")
        self._judge(machine, transfers)
        crash_point("mover.ended")
        self._meter.finishing()
        manifest = self._commit(writer, packs, machine, transfers, started_ns, t0_ns)
        doubts = {name: source.doubts for name, source in self.at_rest.items() if source.doubts}
        hooks = self.served.hooks if self.served else {}
        result = BackupResult(
            self._repository.path,
            manifest,
            machine.engine,
            time.monotonic() - begin,
            doubts,
            hooks,
            gone=tuple(self._files.gone) if self._files else (),
            aliases=self._files.aliases if self._files else {},
            skipped=self._files.skipped if self._files else {},
            estimate=estimate,
        )
        if manifest.failed:
            raise PartialBackupError(result)
        return result

    def _foresee(self, machine: Moving) -> Preflight | None:
        if not self.served:
            return None
        sizes = self._files.sizes_by_volume() if self._files else {}
        return self.served.foresee(sum(self._sizes()), rate=self._mover.rate, hours=machine.hours, sizes=sizes)

    def _add(self, machine: Moving, dataset: Designated, packs: PackWriter) -> Transfer:
        from timezero._native.mover import Sink, Source

        if dataset.path is None:
            assert self.served
            source = self.served.source(dataset.name)
        else:
            at_rest = self.at_rest[dataset.name]
            with moving.in_words(dataset.name):
                source = Source.file(at_rest.fd, at_rest.size)
        return machine.add(dataset.name, source, Sink.packs(packs), target=self._repository.path, index=True)

    def _add_files(self, machine: Moving, packs: PackWriter) -> dict[str, Transfer]:
        """The files as they were at T0: how large they are is not known before."""
        from timezero._native.mover import Sink

        transfers: dict[str, Transfer] = {}
        if self._files is None:
            return transfers
        for found, source in self._files.at_t0(self.served):
            self._at_t0[found.name] = found
            transfers[found.name] = machine.add(
                found.name, source, Sink.packs(packs), target=self._repository.path, index=True
            )
        if not transfers and not self._designated:
            raise TimezeroError("none of the designated files was there any more at T0: nothing was committed")
        return transfers

    def _watch(self, done: int, machine: Moving) -> None:
        self._meter.paced(machine.yields, machine.waits_until)
        for name, source in self.at_rest.items():
            if name not in self.failed:
                try:
                    source.check()
                except TimezeroError as error:
                    self._fail(name, error)
        if self.served:
            self._meter.update(done, *self.served.look())
        else:
            self._meter.update(done)

    def _fail(self, name: str, error: TimezeroError) -> None:
        self.failed[name] = error
        if len(self.failed) == len(self._designated) + len(self._at_t0):
            raise error

    def _judge(self, machine: Moving, transfers: dict[str, Transfer]) -> None:
        """What failed, and whether what remains can be committed. Raises when it cannot."""
        moving.raise_first([transfer for transfer in transfers.values() if transfer.is_fatal], self.served)
        if self.served:
            # a volume that could not be read goes on being guarded to the end, and may be punctured for it, alone
            volumes = [dataset.name for dataset in self._designated if dataset.path is None]
            given_up = [name for name in volumes if transfers[name].error()]
            self.served.end(given_up, copy_bytes_s=machine.pace.bytes_s())
        for name, transfer in transfers.items():
            if name in self.failed:
                continue
            try:
                moving.raise_first([transfer])
                if name in self.at_rest:
                    self.at_rest[name].finish()
            except TimezeroError as error:
                self._fail(name, error)

    def _commit(
        self,
        writer: PointWriter,
        packs: PackWriter,
        machine: Moving,
        transfers: dict[str, Transfer],
        started_ns: int,
        t0_ns: int,
    ) -> Manifest:
        try:
            records = writer.pack_records(packs.finish())
            crash_point("packs.synced")
            datasets = tuple(
                self._record(writer, machine, dataset, transfers[dataset.name])
                for dataset in self._designated
                if dataset.name not in self.failed
            ) + tuple(
                self._file_record(writer, machine, found, transfers[name])
                for name, found in self._at_t0.items()
                if name not in self.failed
            )
            manifest = Manifest(
                id=writer.id,
                repository=self._repository.info.id,
                timezero=__version__,
                host=os.uname().nodename,
                t0_ns=t0_ns,
                started_ns=started_ns,
                completed_ns=time.time_ns(),
                track_size=self._track_size,
                suspension=self.served.suspension if self.served else None,
                packs=records,
                datasets=datasets,
                failed=tuple(FailureRecord(name, str(error)) for name, error in self.failed.items()),
            )
            writer.commit(manifest)
        except OSError as error:
            raise TimezeroError(
                f"{self._repository.path}: {writer.id} cannot be made durable: {error.strerror}: nothing was committed"
            ) from error
        return manifest

    def _record(self, writer: PointWriter, machine: Moving, dataset: Designated, transfer: Transfer) -> DatasetRecord:
        header = IndexHeader(self._chunk_size, transfer.size)
        digest = writer.add_index(dataset.name, header, machine.index(transfer))
        at_rest = self.at_rest.get(dataset.name)
        gate = self.served.final.get(dataset.name) if self.served and not at_rest else None
        return DatasetRecord(
            name=dataset.name,
            source=os.path.abspath(at_rest.path) if at_rest else self._source_path(dataset.name),
            method_requested=at_rest.method_requested if at_rest else "session",
            method_used=at_rest.method_used if at_rest else "session",
            size=transfer.size,
            chunk_size=self._chunk_size,
            digest=digest,
            intercepted=gate["intercepted"] if gate else 0,
            sidefile_high_water_bytes=gate["high_water"] * gate["track_size"] if gate else 0,
            counts=transfer.counts,
            session=gate,
        )

    def _file_record(self, writer: PointWriter, machine: Moving, found: FileAtT0, transfer: Transfer) -> DatasetRecord:
        """Gate and session are those of its volume: they are in the result, and not told again with every file."""
        from timezero.repository import FileRecord

        offset, digest = writer.gather_index(IndexHeader(self._chunk_size, found.size), machine.index(transfer))
        counts = transfer.counts
        return DatasetRecord(
            name=found.name,
            source=found.path,
            method_requested="session",
            method_used=found.method,
            size=found.size,
            chunk_size=self._chunk_size,
            digest=digest,
            intercepted=0,
            sidefile_high_water_bytes=0,
            counts=counts,
            session=None,
            inode=FileRecord(found.volume, counts["bytes_read"], found.metadata),
            index_offset=offset,
        )

    def _source_path(self, volume: str) -> str:
        assert self.served
        return self.served.paths.get(volume, "")
