"""Running the data mover: transfers with their buffer space, watched until they end, their errors in words.

Errors: TimezeroError and its kinds. Threads: one controlling thread; the mover has its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from timezero._linux import machine
from timezero.errors import PunctureError, TimezeroError, VerificationError
from timezero.jobs.options import MoverOptions, engine_from_environment
from timezero.jobs.pace import Pace
from timezero.jobs.windows import Hours, Schedule
from timezero.units import format_size, parse_latency_target

if TYPE_CHECKING:
    from timezero._native.mover import Sink, Source
    from timezero.jobs.serving import Served
    from timezero.jobs.targets import Target

#: Seconds between two looks at the sources and the user: how long a writer that breaks a lease waits at most.
_TICK_S = 0.1
_FATAL = {errno.ESTALE, errno.EPROTO}
#: Looks in a row at a request that is overdue: after a stop of the process (SIGSTOP) the first ones are of no value.
_LOOKS = 3
#: Seconds for what is under way to end, once a device is known not to answer.
_STALLED_STOP_S = 1.0
_COUNTS = (
    "chunks",
    "chunks_zero",
    "chunks_direct",
    "chunks_sidefile",
    "chunks_mixed",
    "chunks_ahead",
    "tracks_from_sidefile",
    "bytes_read",
    "bytes_written",
)


class Transfer:
    """One dataset on its way. source, place, target: as they are called in errors; place: what it is read from.

    report: the mover's, once it has ended.
    """

    def __init__(self, source: str, place: str, target: str, size: int, number: int) -> None:
        self.source = source
        self.place = place
        self.target = target
        self.size = size
        self.number = number
        self.report: dict[str, Any] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How the chunks were obtained, and what was moved."""
        return {name: int(self.report[name]) for name in _COUNTS}

    @property
    def is_fatal(self) -> bool:
        """Did it end in a way that the others of its group share: in their common target, or punctured?"""
        error = abs(int(self.report["error"]))
        return bool(error) and (self.report["side"] == "sink" or error in _FATAL)

    def error(self) -> TimezeroError | None:
        """Why it failed; None when all of its data has arrived."""
        code = abs(int(self.report["error"]))
        if not code:
            return None
        offset, side = self.report["error_offset"], self.report["side"]
        if code == errno.ESTALE:
            return PunctureError(
                f"{self.source}: the session was punctured: T0 is lost, nothing was committed; the application was not "
                "harmed; a larger sidefile or a faster target helps"
            )
        if code == errno.EBADMSG:
            return VerificationError(
                f"{self.source}: damaged at byte {offset}: the stored data does not match its digest"
            )
        if code == errno.ECANCELED:
            return TimezeroError(f"{self.source}: was cancelled")
        reason = os.strerror(code)
        if side == "sink":
            return TimezeroError(f"{self.target}: cannot be written at byte {offset} of {self.source}: {reason}")
        if side == "session":
            return TimezeroError(f"{self.source}: its session broke at byte {offset}: {reason}")
        if code == errno.ENODATA:
            reason = "it ends before that: it was made shorter"
        return TimezeroError(f"{self.source}: cannot be read at byte {offset}: {reason}")


@contextmanager
def in_words(name: str) -> Iterator[None]:
    """An OSError about a source or sink as a TimezeroError that says whose."""
    try:
        yield
    except OSError as error:
        raise TimezeroError(f"{name}: cannot be used: {error.strerror}") from error


def _check_memory(options: MoverOptions, chunk_size: int, sizes: Sequence[int], indexed: bool) -> None:
    """Refuse what there is not the memory for, in the kernel's own estimate: it would overcommit, and kill."""
    buffers = options.frames_taken(chunk_size, sizes) * chunk_size
    index = 0
    if indexed:
        from timezero.repository.index import ENTRY_BYTES  # not for a copy

        index = sum(-(-size // chunk_size) for size in sizes) * ENTRY_BYTES
    there = machine.memory_available(swap=True)
    if buffers + index > there:
        raise TimezeroError(
            f"not enough memory: {format_size(buffers)} of buffers and {format_size(index)} of indexes are needed, and "
            f"this machine, or the control group, has {format_size(there)} left: try a smaller --buffer; backups with "
            "a larger --chunk-size have smaller indexes"
        )


class Moving:
    """A mover and its buffer space, for transfers of one chunk size.

    A context manager: leaving it cancels what still runs, waits, and frees everything.
    """

    def __init__(self, options: MoverOptions, chunk_size: int, sizes: Sequence[int], *, indexed: bool = False) -> None:
        """sizes: bytes of each of the datasets to be moved; indexed: with an index entry for each of their chunks.

        Raises UsageError for options that make no sense, TimezeroError when there is not the memory for it.

        waits_until: when the hours in which data is copied begin, `HH:MM`; empty in them. pace: what is known of how
        fast it copies.
        """
        from timezero._native.mover import BufferSpace, Mover

        options.check()
        target = parse_latency_target(options.latency_target)
        self._schedule = Schedule(options.windows)
        self.waits_until = ""
        self.pace = Pace(options.rate)
        self.transfers: list[Transfer] = []
        self._deadline_s = options.device_deadline_s
        self._overdue = 0
        _check_memory(options, chunk_size, sizes, indexed)
        try:
            self._space = BufferSpace(chunk_size, options.frames(chunk_size, sizes), ready=options.frames_ready())
        except OSError as error:
            raise TimezeroError(
                f"no buffer space of {options.buffer_bytes} bytes: {error.strerror}: try a smaller --buffer"
            ) from error
        try:
            self._mover = Mover(
                self._space,
                engine=options.engine or engine_from_environment(),
                workers=options.workers,
                depth=options.depth,
                rate=options.rate,
                opportunistic=options.yields,
                latency_ns=target.ns,
                latency_percent=target.percent,
            )
        except OSError as error:
            self._space.close()
            raise TimezeroError(f"the data mover cannot start: {error.strerror}: see `timezero doctor`") from error
        except BaseException:
            self._space.close()
            raise

    @property
    def engine(self) -> str:
        """The I/O engine in use."""
        return self._mover.engine

    def add(
        self, name: str, source: Source, sink: Sink, *, target: str, place: str = "", index: bool = False
    ) -> Transfer:
        """Add a transfer. index: keep its index entries.

        name, target, and place, what the dataset is read from where that is not itself, are for errors.
        """
        size = source.size
        with in_words(name):
            number = self._mover.add(source, sink, index=index)
        transfer = Transfer(name, place or name, target, size, number)
        self.transfers.append(transfer)
        return transfer

    def run(self, watch: Callable[[int], None]) -> None:
        """Move everything.

        `watch` is called several times a second with the bytes done; what it raises ends the job. Outside of its hours
        only what a sidefile needs copied is; `waits_until` says so.
        """
        self._keep_hours()
        try:
            self._mover.start()
        except OSError as error:
            raise TimezeroError(f"the data mover cannot start: {error.strerror}: see `timezero doctor`") from error
        while not self._mover.wait(_TICK_S):
            self._check_devices()
            self._keep_hours()
            watch(self.bytes_done())
        self.pace.look(self.bytes_done(), resting=False)
        for transfer in self.transfers:
            transfer.report = self._mover.report(transfer.number)
        watch(self.bytes_done())

    @contextmanager
    def writing(self, written: Sequence[Target]) -> Iterator[None]:
        """In here the targets of the transfers, in their order, are written to.

        When it fails, those that nothing was written to are told so: a mover that cannot start, or a source that is
        damaged where a delta would have begun, has changed nothing.
        """
        for target in written:
            target.begin()
        try:
            yield
        except BaseException:
            # Only after that is it known what a transfer will not have written.
            self._mover.cancel()
            if not self._mover.wait(self._patience_s):
                self._overdue = _LOOKS
            for transfer, target in zip(self.transfers, written, strict=True):
                if self._mover.waits_for(transfer.number, "sink"):
                    target.silent()
                if not self._mover.report(transfer.number)["touched"]:
                    target.spared()
            raise

    @property
    def _patience_s(self) -> float:
        return _STALLED_STOP_S if self._overdue >= _LOOKS else self._deadline_s

    def _check_devices(self) -> None:
        seconds, number, side = self._mover.waiting()
        if seconds <= self._deadline_s:
            self._overdue = 0
            return
        self._overdue += 1
        if self._overdue >= _LOOKS:
            transfer = next(transfer for transfer in self.transfers if transfer.number == number)
            name = transfer.target if side == "sink" else transfer.place
            raise TimezeroError(
                f"{name}: its device has not answered for {seconds:.0f} s, nothing was committed: look after it, or "
                "give it longer with --device-deadline"
            )

    def _keep_hours(self) -> None:
        self.waits_until = self._schedule.opens()
        self._mover.rest(bool(self.waits_until))
        self.pace.look(self.bytes_done(), resting=bool(self.waits_until))

    @property
    def hours(self) -> Hours:
        """When data is copied, from now on."""
        return self._schedule.hours()

    @property
    def yields(self) -> bool:
        """Is it slower than it could be, for the application's sake?"""
        return bool(self._mover.speed()["yields"])

    def bytes_done(self) -> int:
        """Bytes of the datasets that are done, holes included."""
        return self._mover.bytes_done()

    def index(self, transfer: Transfer) -> bytes:
        """The index entries of a transfer that has arrived."""
        return self._mover.index(transfer.number)

    def outcomes(self, transfer: Transfer) -> bytes:
        """How each chunk of a transfer ended that has arrived; nothing unless it salvages or is a delta."""
        return self._mover.outcomes(transfer.number)

    def sync(self, transfer: Transfer) -> None:
        """Make an image durable. Raises TimezeroError; it is final."""
        try:
            self._mover.sync(transfer.number)
        except OSError as error:
            raise TimezeroError(f"{transfer.target}: cannot be made durable: {error.strerror}") from error

    def stop(self) -> None:
        """Cancel what still runs, wait for it, free the buffer space. Safe to repeat.

        What a device does not give back within the deadline is left to the end of the process.
        """
        if self._mover.close(self._patience_s):
            self._space.close()

    def __enter__(self) -> Moving:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def raise_first(transfers: Sequence[Transfer], served: Served | None = None) -> None:
    """Raise the error of the first transfer that failed; a puncture comes first, and its session says why."""
    errors = [error for transfer in transfers if (error := transfer.error()) is not None]
    if not errors:
        return
    first = min(errors, key=lambda error: not isinstance(error, PunctureError))
    if served and isinstance(first, PunctureError):
        served.end()  # raises
    raise first
