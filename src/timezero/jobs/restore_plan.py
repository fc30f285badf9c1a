"""What a restore puts where, decided and checked before anything is read.

Errors: UsageError, TimezeroError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from timezero._linux.stack import Identity, identity_of
from timezero.errors import TimezeroError, UsageError
from timezero.jobs import targets
from timezero.jobs.restore_files import Files
from timezero.jobs.trees import Parts, Tree
from timezero.repository import DatasetRecord, RecoveryPoint
from timezero.repository.names import encode_component


class Way(NamedTuple):
    """How it is restored.

    force: replace files, overwrite a device that is in use. salvage: what is sound of damaged data, with zeros for the
    rest. delta: change a target in place, and only what differs. resume: go on with what an earlier attempt left.
    map_file: where to write what is sound and what is not.
    """

    force: bool = False
    salvage: bool = False
    delta: bool = False
    resume: bool = False
    map_file: str | None = None

    def check(self) -> None:
        """Raises UsageError for what does not go together, TimezeroError for a map that is there already."""
        if self.delta and self.resume:
            raise UsageError("--delta changes a target in place and goes on by itself: leave out --resume")
        if self.map_file is None:
            return
        if not self.salvage:
            raise UsageError(f"{self.map_file}: a map tells of damage: it goes with --salvage")
        if os.path.lexists(self.map_file) and not stat.S_ISREG(os.lstat(self.map_file).st_mode):
            raise UsageError(f"{self.map_file}: is there, and is no file: name another one for the map")
        if os.path.lexists(self.map_file) and not self.force:
            raise TimezeroError(f"{self.map_file}: exists already: replace it with --force, or name another one")


class Plan:
    """What goes where. `images`: {dataset: path} of what goes to a target of its own; `files`: what goes to a tree."""

    def __init__(
        self, stack: ExitStack, repository: str, point: RecoveryPoint, chosen: Sequence[DatasetRecord], way: Way
    ) -> None:
        self._stack = stack
        self._repository = repository
        self.point = point
        self.chosen = chosen
        self.way = way
        self.images: dict[str, str] = {}
        self.files: Files | None = None

    def check(self) -> None:
        """After the targets are chosen: is there one image to tell of in a map, elsewhere? Raises UsageError."""
        path = self.way.map_file
        if path is None:
            return
        if len(self.images) != 1:
            raise UsageError(f"{path}: a map is of one dataset, and these are {len(self.images)}: name one")
        _check_outside(self._repository, path, "map")
        (image,) = self.images.values()
        if os.path.realpath(path) in {os.path.realpath(image), os.path.realpath(image + targets.DAMAGED_SUFFIX)}:
            raise UsageError(f"{path}: is where the image goes: name another file for the map")

    def in_place(self) -> None:
        """Files to where they came from. Raises UsageError for volumes."""
        for record in self.chosen:
            if record.inode is None:
                raise UsageError(f"{record.name}: is no file: restore it to a target of its own, not --in-place")
        self._plant("/", self.chosen)
        self._check_collisions("/")

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
        targets.check_target(path, force=self.way.force, salvage=self.way.salvage)
        _check_outside(self._repository, path)
        if path != targets.STREAM:
            targets.check_apart(path, "the target", _sources(self._repository))
        self.images[record.name] = path

    def _plant(self, root: str, records: Sequence[DatasetRecord]) -> None:
        """Files below `root`, each under its whole path."""
        if self.way.delta or self.way.resume or self.way.map_file is not None:
            raise UsageError(
                f"{records[0].name}: is a file, and is there as a whole or not at all: --delta, --resume and --map are "
                "for what is restored to an image or device"
            )
        try:
            tree = self._stack.enter_context(Tree(root))
        except OSError as error:
            raise TimezeroError(f"{root}: cannot be written: {error.strerror}") from error
        places: dict[str, Parts] = {}
        for record in records:
            assert record.path is not None
            places[record.name] = tuple(record.path[1:].split("/"))
        self.files = Files(tree, places, self.way.force)
        there = [path for name in places if os.path.lexists(path := self.files.path(name))]
        if self.way.salvage:
            there += [
                path for name in places if os.path.lexists(path := self.files.path(name) + targets.DAMAGED_SUFFIX)
            ]
        if there and not self.way.force:
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
        """No two datasets to one place, none to what is a directory for another. Raises UsageError.

        Salvaged, a dataset has a second place: where it goes when it is not whole.
        """
        owners: dict[Parts, str] = {}
        places = dict(self.files.places) if self.files else {}
        images: dict[str, Parts] = {name: (os.path.basename(path),) for name, path in self.images.items()}
        suffixes = ("", targets.DAMAGED_SUFFIX) if self.way.salvage else ("",)
        for name, parts in (images | places).items():
            for suffix in suffixes:
                other = owners.setdefault((*parts[:-1], parts[-1] + suffix), name)
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


def _check_outside(repository: str, path: str, what: str = "target") -> None:
    root = os.path.realpath(repository)
    if path != targets.STREAM and os.path.commonpath([root, os.path.realpath(path)]) == root:
        raise UsageError(f"{path}: the {what} lies in the repository: choose another place")


def _sources(repository: str) -> list[tuple[str, str, Identity]]:
    return [("repository", repository, identity_of(os.stat(repository)))]
