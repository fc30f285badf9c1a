"""Datasets that are files on the file systems of served volumes: from what the user named to sources of the mover.

    resolve: names to open files, mounts proved to live on their volumes      nothing is suspended yet
    formed:  write out, freeze ─▶ map all files ─▶ domains ─▶ (gates close, T0, gates open) ─▶ thaw
    sources: a file each, over one view of its volume's session

Files that cannot be mapped (`read_through`) are read through their file systems after T0: the record says so.

Errors: UsageError before anything is suspended; DeadlineError, TimezeroError: then there is no T0. Threads: one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero._crash import crash_point
from timezero.errors import TimezeroError, UsageError
from timezero.jobs.moving import in_words
from timezero.jobs.options import FileOptions, SessionOptions

if TYPE_CHECKING:
    from timezero._native.bitmap import Bitmap
    from timezero._native.mover import Source
    from timezero.concordance.freezer import Freezer
    from timezero.concordance.mapping import Concordance, FileMap
    from timezero.concordance.metadata import Metadata
    from timezero.concordance.selection import Designated, FileDataset, Selection
    from timezero.jobs.serving import Served


class FileAtT0(NamedTuple):
    """A file dataset with its T0 secured. size: bytes. method: "session", or "read-through"."""

    name: str
    path: str
    volume: str
    size: int
    method: str
    metadata: Metadata


class Files:
    """The file datasets of a job. A context manager: leaving it closes every file."""

    def __init__(self, selections: Sequence[Selection], session: SessionOptions, options: FileOptions) -> None:
        """Resolve. Raises UsageError."""
        from timezero.concordance import mounts, selection

        servers = _servers(session.controls)
        wanted = list(dict.fromkeys(chosen.volume for chosen in selections))
        given = [mounts.given(text, servers) for text in options.mounts]
        named = {mount.volume for mount in given}
        found = mounts.find(servers, [volume for volume in wanted if volume not in named])
        with ExitStack() as undo:
            self._resolve(undo, selection.resolve(selections, [*given, *found], read_through=options.read_through))
            self._stack = undo.pop_all()

    def _resolve(self, stack: ExitStack, everything: Designated) -> None:
        from timezero.concordance.selection import Designated

        stack.enter_context(everything)
        self.aliases, self.skipped = dict(everything.aliases), dict(everything.skipped)
        self.gone: list[str] = []
        #: Those that are read through their file systems, and why.
        self.through = [dataset for dataset in everything.datasets if dataset.problem]
        mapped = [dataset for dataset in everything.datasets if not dataset.problem]
        everything.datasets = self.through  # which stay open to the end
        self._mapped = stack.enter_context(Designated(mapped))
        self._maps: Sequence[FileMap] = ()
        self._freezer: Freezer | None = None
        #: Volumes that files are to be read from, and so have a session of their tracks.
        self.volumes = list(dict.fromkeys(dataset.volume for dataset in mapped))
        self._mounts = {dataset.mount.device: dataset.mount for dataset in mapped}
        if not mapped and not self.through:
            raise UsageError("no file was designated")

    # ---- before T0 ----

    def verify(self, served: Served) -> None:
        """Every mount lives on its volume, at its offset. Raises UsageError."""
        from timezero.concordance import mounts

        for mount in self._mounts.values():
            mounts.verify(mount, served.reader(mount.volume), served.size(mount.volume))
        for volume, below in served.sidefiles().items():
            for device, mount in self._mounts.items():
                if (device, 0) in below:
                    raise UsageError(
                        f"the sidefile of volume {volume} lies on {mount.point}, which has to be frozen: thawing would "
                        "wait for itself; serve with a --sidefile-path elsewhere"
                    )

    def get_ready(self) -> None:
        """Start the watchdog, and write out what is dirty, so that little is left to be done while frozen."""
        if self._mapped.datasets:
            from timezero.concordance.freezer import Freezer

            self._freezer = self._stack.enter_context(Freezer([mount.point for mount in self._mounts.values()]))
            if set(self._freezer.devices) != set(self._mounts):
                raise TimezeroError("something else was mounted over a file system that was to be frozen: try again")
            self._freezer.sync()

    @contextmanager
    def formed(self, served: Served, deadline_s: float, times: dict[str, int]) -> Iterator[None]:
        """The concordance of all files, formed while their file systems are frozen; the body secures T0 meanwhile.

        times: microseconds of `freeze_us`, `map_us`, `thaw_us` and of all the time that the file systems were frozen,
        `frozen_us`, are put there. A body that ends well had everything frozen without a break, or this raises. After
        `get_ready`.
        """
        if self._freezer is None:
            yield
            return
        with self._freezer as freezer:
            freezer.sync()
            began = time.monotonic_ns()
            freezer.freeze(deadline_s)
            frozen = time.monotonic_ns()
            crash_point("files.frozen")
            self._form(served)
            mapped = time.monotonic_ns()
            yield
            thawing = time.monotonic_ns()
            crash_point("files.secured")
            freezer.thaw()
            end = time.monotonic_ns()
        parts = {"freeze": frozen - began, "map": mapped - frozen, "thaw": end - thawing, "frozen": end - began}
        times.update({f"{name}_us": ns // 1000 for name, ns in parts.items()})
        self._mapped.close()

    def _form(self, served: Served) -> None:
        from timezero.concordance.mapping import map_files

        concordance = map_files(self._mapped)
        self.gone = concordance.gone
        for volume in self.volumes:
            served.set_domain(volume, partial(_designate, concordance, volume, served.track_size_of(volume)))
        self._maps = concordance

    # ---- after T0 ----

    def at_t0(self, served: Served | None) -> Iterator[tuple[FileAtT0, Source]]:
        """Every file, with the mover's source of it. Raises TimezeroError."""
        from timezero._native.mover import Source

        for found in self._maps:
            dataset = found.dataset
            assert served
            with in_words(dataset.name):
                source = Source.extents(
                    served.view(dataset.volume), found.size, found.logical, found.physical, found.length
                )
            yield _file(dataset, found.size, "session", found.metadata), source
        for dataset in self.through:
            yield _through(dataset)

    def sizes(self) -> list[int]:
        """Bytes of each file as it is now: for the buffer space, which is made before T0."""
        return [os.fstat(dataset.fd).st_size for dataset in [*self._mapped.datasets, *self.through]]

    def sizes_by_volume(self) -> dict[str, int]:
        """{volume: bytes of the files that are read from it}, as they are now."""
        sizes = dict.fromkeys(self.volumes, 0)
        for dataset in self._mapped.datasets:
            sizes[dataset.volume] += os.fstat(dataset.fd).st_size
        return sizes

    def identities(self) -> list[tuple[str, str, tuple[int, int]]]:
        """(name, path, identity) of the device of each mount: a repository on one would be frozen with it."""
        return [(mount.volume, mount.point, (mount.device, 0)) for mount in self._mounts.values()]

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _designate(concordance: Concordance, volume: str, track_size: int, tracks: Bitmap) -> None:
    concordance.domain(volume, track_size, len(tracks), into=tracks)


def _servers(controls: Sequence[str]) -> list[Any]:
    from timezero import session
    from timezero.concordance.mounts import Served as Subsystem

    try:
        return [Subsystem.of(session.status(control)) for control in controls]
    except (KeyError, TypeError, AssertionError):
        raise TimezeroError("the storage subsystem's answer makes no sense: is it of this version?") from None


def _file(dataset: FileDataset, size: int, method: str, metadata: Metadata) -> FileAtT0:
    return FileAtT0(dataset.name, dataset.path, dataset.volume, size, method, metadata)


def _through(dataset: FileDataset) -> tuple[FileAtT0, Source]:
    """A file that its file system reads for us: as it is by then, and so not T0."""
    from timezero._native.mover import Source
    from timezero.concordance.metadata import Metadata

    with in_words(dataset.name):
        size = os.fstat(dataset.fd).st_size
        source = Source.file(dataset.fd, size)
        return _file(dataset, size, "read-through", Metadata.of(dataset.fd)), source
