"""copy: the T0 image of one dataset."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero.errors import UsageError
from timezero.jobs import moving, targets
from timezero.jobs.at_rest import AtRest
from timezero.jobs.datasets import Designated, designate, split_files
from timezero.jobs.options import MoverOptions, SessionOptions, check_sizes
from timezero.jobs.progress import Meter, ProgressCallback
from timezero.jobs.serving import Served

if TYPE_CHECKING:
    from timezero._native.mover import Source
    from timezero.jobs.preflight import Preflight

CHUNK_DEFAULT = 1 << 20


class CopyResult(NamedTuple):
    """A copy that is whole and durable.

    t0_ns: nanoseconds since the epoch, as in a manifest. Sizes in bytes, suspension in microseconds; doubts: why a
    fuzzy copy is one; hooks: of each by its text, microseconds of its steps; estimate: what was foreseen for the
    sidefile of a served volume.
    """

    source: str
    target: str
    size: int
    t0_ns: int
    method: str
    engine: str
    seconds: float
    counts: dict[str, int]
    suspension: dict[str, int] | None
    session: dict[str, int] | None
    doubts: tuple[str, ...] = ()
    hooks: Mapping[str, dict[str, int]] = MappingProxyType({})
    estimate: Preflight | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        estimate = self.estimate.to_json() if self.estimate else None
        return {**self._asdict(), "hooks": dict(self.hooks), "estimate": estimate}


def copy(
    source: str,
    target: str,
    *,
    force: bool = False,
    fuzzy: bool = False,
    chunk_size: int = CHUNK_DEFAULT,
    session: SessionOptions | None = None,
    mover: MoverOptions | None = None,
    progress: ProgressCallback | None = None,
    foresee: Callable[[Preflight], None] | None = None,
) -> CopyResult:
    """Copy a dataset as of T0 to a file, a block device or `-` (standard output).

    source: the name of a served volume, or the path of a file or device at rest. force: replace an existing file,
    overwrite a device that is in use. fuzzy: copy a source that changes meanwhile. chunk_size: bytes. foresee: told
    before T0 what the sidefile will probably have to hold. Raises TimezeroError and its kinds.
    """
    session, mover = session or SessionOptions(), mover or MoverOptions()
    check_sizes(session.track_size or 4096, chunk_size)
    if split_files([source])[1]:
        raise UsageError(f"{source}: copy takes a whole volume or what is at rest: files on a volume are backed up")
    dataset = designate(source)
    session.check_quiesce(served=dataset.path is None)
    targets.check_target(target, force=force)
    with ExitStack() as stack:
        job = _Copy(stack, dataset, session, fuzzy)
        if job.served:
            check_sizes(job.served.track_size, chunk_size)
        if target != targets.STREAM:
            targets.check_apart(target, "the target", job.identities)
        image = stack.enter_context(targets.open_target(target, job.size, force=force))
        machine = stack.enter_context(moving.Moving(mover, chunk_size, [job.size]))
        transfer = machine.add(dataset.name, job.source(), image.sink(), target=image.name)
        meter = Meter(progress, job.size)
        estimate = job.foresee(machine, mover.rate)
        if estimate and foresee:
            foresee(estimate)
        if job.served:
            job.served.suspend()
        t0_ns = job.served.t0_ns if job.served else time.time_ns()
        with targets.telling_left(image):
            with machine.writing([image]):
                machine.run(job.watch(meter, machine))
                moving.raise_first(machine.transfers, job.served)
                meter.finishing()
                job.end(machine)
                if target != targets.STREAM:
                    machine.sync(transfer)
            engine = machine.engine
            machine.stop()
            image.publish()
        return CopyResult(
            source=source,
            target=target,
            size=job.size,
            t0_ns=t0_ns,
            method=job.method,
            engine=engine,
            seconds=(transfer.report["ended_ns"] - transfer.report["started_ns"]) / 1e9,
            counts=transfer.counts,
            suspension=job.served.suspension if job.served else None,
            session=job.served.final.get(dataset.name) if job.served else None,
            doubts=tuple(job.at_rest.doubts) if job.at_rest else (),
            hooks=job.served.hooks if job.served else {},
            estimate=estimate,
        )


class _Copy:
    """The source of a copy: either a volume under a session or one at rest."""

    def __init__(self, stack: ExitStack, dataset: Designated, session: SessionOptions, fuzzy: bool) -> None:
        self.served: Served | None = None
        self.at_rest: AtRest | None = None
        if dataset.path is None:
            self.served = stack.enter_context(Served([dataset.name], session))
            self.size = self.served.size(dataset.name)
            self.identities = self.served.identities()
            self.method = "session"
        else:
            self.at_rest = stack.enter_context(AtRest(dataset.path, fuzzy=fuzzy))
            self.size = self.at_rest.size
            self.identities = [(dataset.name, os.path.abspath(dataset.path), self.at_rest.identity)]
            self.method = "at-rest"
        self._name = dataset.name

    def source(self) -> Source:
        """The mover's source."""
        from timezero._native.mover import Source

        if self.served:
            return self.served.source(self._name)
        assert self.at_rest
        with moving.in_words(self._name):
            return Source.file(self.at_rest.fd, self.size)

    def watch(self, meter: Meter, machine: moving.Moving) -> Callable[[int], None]:
        """What to do several times a second."""

        def look(done: int) -> None:
            meter.paced(machine.yields, machine.waits_until)
            if self.at_rest:
                self.at_rest.check()
                meter.update(done)
            elif self.served:
                meter.update(done, *self.served.look())

        return look

    def foresee(self, machine: moving.Moving, rate: int) -> Preflight | None:
        """What the sidefile of a served volume will have to hold."""
        return self.served.foresee(self.size, rate=rate, hours=machine.hours) if self.served else None

    def end(self, machine: moving.Moving) -> None:
        """After the last chunk: was it T0 to the end? Raises PunctureError, TimezeroError."""
        if self.served:
            self.served.end(copy_bytes_s=machine.pace.bytes_s())
        if self.at_rest:
            self.at_rest.finish()
            self.method = self.at_rest.method_used
