"""Which files are meant: VOLUME:/path and VOLUME:/glob, resolved to open files before anything is suspended.

A path names a file, or a directory with everything below it. In a pattern, `*`, `?` and `[...]` stand for characters of
one name (also for a leading dot: a backup that leaves out .htaccess is worse than one that takes too much), and `**`
for any number of directories. A path that exists is taken by its letters as well, should it look like a pattern.

    other file systems        not entered            skipped
    symbolic links            met below a directory  skipped
                              named, or matched by a pattern's last part: its target, a regular file on the same mount
    devices, sockets, pipes   met                    skipped; named: an error
    hard links                one dataset under the name found first, by order of names; the others are aliases

What is skipped and aliased is listed. A pattern that finds nothing is an error.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import resource
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import overload

import numpy as np

from timezero._linux import files
from timezero.concordance.mapping import problem_of, problems
from timezero.concordance.mounts import Mount
from timezero.descriptors import raise_limit
from timezero.errors import TimezeroError, UsageError
from timezero.repository.names import dataset_name_problem

_TEXT = re.compile(r"([A-Za-z0-9._-]+):(/.*)", re.DOTALL)
_MAGIC = re.compile(r"[*?[]")
_NAMED_IN_ERRORS = 10
_ATTEMPTS = 5
_OTHER_DESCRIPTORS = 256  # that this process may need besides those of the files


@dataclass(frozen=True)
class Selection:
    """Files on the file system of a volume: an absolute path or pattern."""

    volume: str
    pattern: str

    def __str__(self) -> str:
        return f"{self.volume}:{self.pattern}"


def is_selection(text: str) -> bool:
    """Is it VOLUME:/..., and not the name of a volume or the path of a file?"""
    return _TEXT.fullmatch(text) is not None


def parse(text: str) -> Selection:
    """The selection that VOLUME:/path means. Raises UsageError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no files: write VOLUME:/absolute/path or VOLUME:/pattern")
    if "\0" in text:
        raise UsageError(f"{text!r} holds a zero byte")
    if ".." in match[2].split("/"):
        raise UsageError(f"{text!r}: '..' is not taken in a path of files")
    return Selection(match[1], match[2])


@dataclass(frozen=True)
class FileDataset:
    """A regular file, open for reading as long as its Designated is: `inode` and `generation` tell it from all others.

    `problem`: why its extents cannot be read from the volume (then it is to be read through the file system), or None.
    """

    name: str  # VOLUME:/real/path
    path: str
    volume: str
    mount: Mount
    fd: int
    inode: int
    generation: int
    problem: str | None = None


@dataclass
class Designated(Sequence[FileDataset]):
    """The datasets, sorted by name, and what was left out. Owns the descriptors: use it as a context manager."""

    datasets: list[FileDataset]
    aliases: dict[str, str] = field(default_factory=dict)  # another name of a dataset: the dataset's name
    skipped: dict[str, str] = field(default_factory=dict)  # VOLUME:/path: why

    def __len__(self) -> int:
        return len(self.datasets)

    @overload
    def __getitem__(self, at: int) -> FileDataset: ...
    @overload
    def __getitem__(self, at: slice) -> list[FileDataset]: ...
    def __getitem__(self, at: int | slice) -> FileDataset | list[FileDataset]:
        return self.datasets[at]

    def __enter__(self) -> Designated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors. Safe to repeat."""
        for dataset in self.datasets:
            os.close(dataset.fd)
        self.datasets = []

    def reopen(self, at: int) -> bool:
        """Take, for dataset number `at`, the file that has its name now; False, and the dataset is dropped, when there
        is none that is regular and on the same file system. Does not wait for a frozen file system.
        Raises TimezeroError when that one cannot be mapped.
        """
        dataset = self.datasets[at]
        found = _open_regular(dataset.path)
        os.close(dataset.fd)
        if isinstance(found, str) or found.st_dev != dataset.mount.device:
            if not isinstance(found, str):
                os.close(found.fd)
            del self.datasets[at]
            return False
        self.datasets[at] = replace(dataset, fd=found.fd, inode=found.st_ino)
        read = files.read_files([found.fd], constants=True)
        self.datasets[at] = replace(self.datasets[at], generation=int(read.facts["generation"][0]))
        if bad := problems(read, dirty=False):
            raise TimezeroError(f"there is no T0: {dataset.name}, which is another file than before: {bad[0]}")
        return True


def resolve(selections: Iterable[Selection], mounts: Iterable[Mount], *, read_through: bool = False) -> Designated:
    """The files that are meant, open. `mounts`: one for each volume, or several.

    read_through: files that cannot be mapped are datasets with a `problem`; else they are refused, by name.
    Raises UsageError: a volume without a mount, a pattern that finds nothing, a file that cannot be had.
    """
    by_volume: dict[str, list[Mount]] = {}
    for mount in mounts:
        by_volume.setdefault(mount.volume, []).append(mount)
    with ExitStack() as undo:
        finder = _Finder()
        undo.callback(finder.close)
        for selection in selections:
            if selection.volume not in by_volume:
                raise UsageError(
                    f"{selection}: where volume {selection.volume} is mounted is not known; "
                    f"say --mount {selection.volume}=PATH"
                )
            finder.find(selection, by_volume[selection.volume], read_through)
        designated = finder.result()
        undo.pop_all()
    try:
        _check(designated, read_through)
    except BaseException:
        designated.close()
        raise
    return designated


def _check(designated: Designated, read_through: bool) -> None:
    """Can they all be mapped? A first look; what holds is what mapping finds while frozen."""
    read = files.read_files([dataset.fd for dataset in designated], constants=True)
    failed = np.flatnonzero(read.facts["error"])
    found = {int(number): problem_of(read, int(number)) for number in failed} | problems(read, dirty=True)
    refused: list[str] = []
    for number, dataset in enumerate(designated.datasets):
        facts = read.facts[number]
        problem = dataset.problem or _mount_problem(dataset.mount) or found.get(number)
        designated.datasets[number] = replace(dataset, generation=int(facts["generation"]), problem=problem)
        if problem:
            refused.append(f"{dataset.name}: {problem}")
    if refused and not read_through:
        more = f"; and {len(refused) - _NAMED_IN_ERRORS} more" * (len(refused) > _NAMED_IN_ERRORS)
        raise UsageError(
            f"cannot be read from their volumes: {'; '.join(refused[:_NAMED_IN_ERRORS])}{more} "
            "(--read-through copies such files through the file system)"
        )


def _mount_problem(mount: Mount) -> str | None:
    if mount.fs_type in ("ext2", "ext3", "ext4", "xfs"):
        return None
    if mount.fs_type == "btrfs":
        return "btrfs: what it calls physical is no address on the device"
    return f"{mount.fs_type}: not known to tell where on the device its files lie"


# ---- finding ----


@dataclass(frozen=True)
class _Opened:
    fd: int
    st_dev: int
    st_ino: int


class _Finder:
    """Collects open files by name; each file system's inodes once."""

    def __init__(self) -> None:
        self._found: dict[str, FileDataset] = {}
        self._skipped: dict[str, str] = {}
        self._room = _room_for_files(0)

    def close(self) -> None:
        for dataset in self._found.values():
            os.close(dataset.fd)
        self._found = {}

    def result(self) -> Designated:
        """Names in order, so that the first of several hard links is always the same."""
        datasets: list[FileDataset] = []
        aliases: dict[str, str] = {}
        first: dict[tuple[int, int], str] = {}
        for name in sorted(self._found, key=os.fsencode):
            dataset = self._found[name]
            key = (os.fstat(dataset.fd).st_dev, dataset.inode)
            if key in first:
                aliases[name] = first[key]
                os.close(dataset.fd)
            else:
                first[key] = name
                datasets.append(dataset)
        skipped = {name: why for name, why in self._skipped.items() if name not in self._found}
        self._found = {}
        return Designated(datasets, aliases, dict(sorted(skipped.items(), key=lambda item: os.fsencode(item[0]))))

    def find(self, selection: Selection, mounts: Sequence[Mount], read_through: bool) -> None:
        devices = {mount.device: mount for mount in mounts}
        before = len(self._found), len(self._skipped)
        taken = 0
        literal = os.path.lexists(selection.pattern)
        paths = [selection.pattern] if literal else []
        if _MAGIC.search(selection.pattern):
            paths += _expand(selection.pattern)
        for path in dict.fromkeys(paths):
            taken += self._named(selection, path, devices, read_through, exact=literal and path == selection.pattern)
        if not taken:
            what = (
                "nothing" if len(self._skipped) == before[1] else "nothing but what is skipped (links, special files)"
            )
            raise UsageError(f"{selection}: {what} is there")

    def _named(
        self, selection: Selection, path: str, devices: dict[int, Mount], read_through: bool, *, exact: bool
    ) -> int:
        """A path that was named, or that a pattern matched; how many files it gave."""
        real = os.path.realpath(path)
        try:
            status = os.stat(real)
        except OSError as error:
            return self._unusable(selection, path, f"{error.strerror}", exact)
        mount = devices.get(status.st_dev)
        is_link = os.path.islink(path)
        if stat.S_ISDIR(status.st_mode):
            if mount is None:
                return self._unusable(selection, path, _not_there(devices), exact)
            if is_link and not exact:
                return self._unusable(selection, path, "a symbolic link to a directory", exact)
            return self._below(selection.volume, real, mount)
        if not stat.S_ISREG(status.st_mode):
            return self._unusable(selection, path, "neither a regular file nor a directory", exact)
        if mount is None and not (read_through and exact):
            return self._unusable(selection, path, _not_there(devices), exact)
        problem = None if mount else "it is on another file system than its volume's"
        return self._take(selection.volume, real, mount or next(iter(devices.values())), problem)

    def _unusable(self, selection: Selection, path: str, why: str, exact: bool) -> int:
        if exact:
            raise UsageError(f"{selection}: {why}")
        self._skipped[f"{selection.volume}:{path}"] = why
        return 0

    def _below(self, volume: str, top: str, mount: Mount) -> int:
        """Everything below a directory, which may be very deep; links are not followed."""
        taken = 0
        todo = [top]
        while todo:
            directory = todo.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_symlink():
                            self._skipped[f"{volume}:{entry.path}"] = "a symbolic link"
                        elif entry.is_dir(follow_symlinks=False):
                            if entry.stat(follow_symlinks=False).st_dev == mount.device:
                                todo.append(entry.path)
                            else:
                                self._skipped[f"{volume}:{entry.path}"] = "another file system"
                        elif entry.is_file(follow_symlinks=False):
                            taken += self._take(volume, entry.path, mount, None)
                        else:
                            self._skipped[f"{volume}:{entry.path}"] = "neither a regular file nor a directory"
            except FileNotFoundError:
                continue  # removed while we were looking
            except OSError as error:
                raise UsageError(f"{volume}:{directory}: {error.strerror}") from None
        return taken

    def _take(self, volume: str, path: str, mount: Mount, problem: str | None) -> int:
        name = f"{volume}:{path}"
        if name in self._found:
            return 1
        if (bad := dataset_name_problem(name)) is not None:
            raise UsageError(f"{name!r} cannot name a dataset: {bad}")
        if len(self._found) >= self._room:
            self._room = _room_for_files(len(self._found))
        found = _open_regular(path)
        if isinstance(found, str):
            if found == os.strerror(errno.ENOENT):
                return 0  # removed while we were looking
            raise UsageError(f"{name}: {found}")
        if found.st_dev != mount.device and problem is None:
            os.close(found.fd)
            self._skipped[name] = "another file system"  # a file that something is mounted over
            return 0
        self._found[name] = FileDataset(name, path, volume, mount, found.fd, found.st_ino, 0, problem)
        return 1


def _not_there(devices: dict[int, Mount]) -> str:
    return f"it is not on the file system that is mounted at {', '.join(mount.point for mount in devices.values())}"


def _open_regular(path: str) -> _Opened | str:
    """The file, or why not. Its access time is left alone where we may."""
    for _ in range(_ATTEMPTS):
        try:
            descriptor = _open(path)
        except OSError as error:
            return error.strerror or "cannot be opened"
        # Renamed since, or a directory on the way has become a link: then it is not what the name means.
        if os.readlink(f"/proc/self/fd/{descriptor}") == path:
            break
        os.close(descriptor)
    else:
        return "it keeps being renamed"
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return "not a regular file any more"
    return _Opened(descriptor, status.st_dev, status.st_ino)


def _open(path: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def _room_for_files(held: int) -> int:
    """How many files may be held open, when `held` are: the limit is raised as far as it may be. Raises UsageError."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if held >= most - _OTHER_DESCRIPTORS:
        most = raise_limit()
    if held >= most - _OTHER_DESCRIPTORS:
        raise UsageError(
            f"{held} files are too many to hold open at once; raise the limit (ulimit -Hn) or select fewer"
        )
    return most - _OTHER_DESCRIPTORS


def _expand(pattern: str) -> Iterator[str]:
    """All paths that a pattern matches, links among them."""
    parts = [part for part in pattern.split("/") if part]
    yield from _expand_parts("/", parts)


def _expand_parts(directory: str, parts: Sequence[str]) -> Iterator[str]:
    if not parts:
        yield directory
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _expand_parts(directory, rest)
        for entry in _entries(directory):
            if entry.is_dir(follow_symlinks=False):
                yield from _expand_parts(entry.path, parts)
        return
    literal = os.path.join(directory, part)
    if not _MAGIC.search(part):
        if os.path.lexists(literal):
            yield from _expand_parts(literal, rest)
        return
    matches = re.compile(fnmatch.translate(part)).fullmatch
    for entry in _entries(directory):
        # Links to directories on the way are not followed when a pattern matched them.
        if matches(entry.name) and (not rest or entry.is_dir(follow_symlinks=False)):
            yield from _expand_parts(entry.path, rest)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from None
