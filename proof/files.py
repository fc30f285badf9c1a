"""File activity with a ledger, and the judge of a restored file system.

The ledger notes for each path every state it was brought to: when the change began and when an fsync had made it
durable (CLOCK_MONOTONIC). A file system that crashed at T0 owes us each state that was durable before T0 and that
nobody had begun to change by then. It owes nothing about the others.

Shares no code with timezero.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ABSENT = "absent"


@dataclass
class State:
    """What a path was brought to. durable: when fsync had returned; None: nobody asked."""

    begun: int
    durable: int | None
    content: str  # SHA-256, or ABSENT


@dataclass
class Ledger:
    states: dict[str, list[State]] = field(default_factory=dict)

    def note(self, path: str, begun: int, durable: int | None, content: str) -> None:
        self.states.setdefault(path, []).append(State(begun, durable, content))

    def owed(self, earliest: int, latest: int) -> dict[str, str]:
        """Path → content that a crash at any instant of earliest..latest must have kept."""
        result = {}
        for path, states in self.states.items():
            begun = [s for s in states if s.begun <= latest]
            if begun and begun[-1].durable is not None and begun[-1].durable < earliest:
                result[path] = begun[-1].content
        return result


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def judge(root: Path, owed: dict[str, str]) -> list[str]:
    """What of the owed states a restored tree does not hold, one line each."""
    faults = []
    for path, content in sorted(owed.items()):
        there = (root / path).is_file()
        if content == ABSENT:
            if there:
                faults.append(f"{path}: was deleted durably before T0 and is back")
        elif not there:
            faults.append(f"{path}: was durable before T0 and is missing")
        elif sha256(root / path) != content:
            faults.append(f"{path}: differs from what was durable before T0")
    return faults


def machine_files(count: int, most_bytes: int) -> list[Path]:
    """Regular files of the machine itself, up to a number and a total size, the same on each call."""
    chosen, total = [], 0
    for top in ("/usr/share/doc", "/usr/lib/python3", "/usr/share/perl5", "/usr/include", "/usr/share", "/usr/lib"):
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder) / name
                try:
                    size = path.lstat().st_size
                    usable = path.is_file() and not path.is_symlink() and 0 < size < 4 << 20
                except OSError:
                    continue
                if usable and total + size <= most_bytes:
                    chosen.append(path)
                    total += size
                    if len(chosen) == count:
                        return chosen
    return chosen


class Activity(threading.Thread):
    """Unpacks, renames, deletes and appends under a folder until it is stopped; some of it with fsync, as programs do.

    After `join`, `error` holds what ended it early, if anything did: no application may see errors during a backup.
    """

    def __init__(
        self, root: Path, source: Iterable[Path], ledger: Ledger, *, prefix: str = "busy", seed: int = 1
    ) -> None:
        super().__init__(name="file-activity", daemon=True)
        self.root, self.source, self.ledger, self.prefix = root, list(source), ledger, prefix
        self.random = random.Random(seed)
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self.operations = 0
        self._files: list[str] = []
        self._number = 0

    def populate(self, folder: str) -> None:
        """Copies all of the source into a folder and makes it durable: the part that nobody touches later."""
        begun = time.monotonic_ns()
        names = []
        for number, path in enumerate(self.source):
            name = f"{folder}/{number % 32:02d}/{number:05d}-{path.name[:100]}"
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.root / name)
            names.append(name)
        os.sync()
        durable = time.monotonic_ns()
        for name in names:
            self.ledger.note(name, begun, durable, sha256(self.root / name))

    def run(self) -> None:
        steps = [self._unpack, self._append, self._append, self._rename, self._delete]
        try:
            (self.root / self.prefix).mkdir(exist_ok=True)
            while not self.stopping.is_set():
                self.random.choice(steps if self._files else [self._unpack])()
                self.operations += 1
        except BaseException as error:  # kept for the caller, who judges it
            self.error = error

    def stop(self) -> None:
        self.stopping.set()
        self.join(timeout=120)
        if self.is_alive():
            raise RuntimeError("the file activity hangs")
        if self.error:
            raise RuntimeError(f"the file activity saw an error: {self.error!r}") from self.error

    def _sync(self, path: Path) -> int:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return time.monotonic_ns()

    def _unpack(self) -> None:
        folder = f"{self.prefix}/{self._number:04d}"
        self._number += 1
        (self.root / folder).mkdir(parents=True)
        for path in self.random.sample(self.source, min(12, len(self.source))):
            name = f"{folder}/{len(self._files)}-{path.name[:100]}"
            begun = time.monotonic_ns()
            shutil.copyfile(path, self.root / name)
            durable = self._sync(self.root / name) if self.random.random() < 0.5 else None
            self.ledger.note(name, begun, durable, sha256(self.root / name))
            self._files.append(name)

    def _append(self) -> None:
        name = self.random.choice(self._files)
        begun = time.monotonic_ns()
        with (self.root / name).open("ab") as file:
            file.write(self.random.randbytes(self.random.randrange(1, 20000)))
        durable = self._sync(self.root / name)
        self.ledger.note(name, begun, durable, sha256(self.root / name))

    def _rename(self) -> None:
        at = self.random.randrange(len(self._files))
        old, new = self._files[at], self._files[at] + "~"
        begun = time.monotonic_ns()
        (self.root / old).rename(self.root / new)
        self._sync(self.root / new)
        durable = self._sync((self.root / new).parent)
        self.ledger.note(old, begun, durable, ABSENT)
        self.ledger.note(new, begun, durable, sha256(self.root / new))
        self._files[at] = new

    def _delete(self) -> None:
        name = self._files.pop(self.random.randrange(len(self._files)))
        begun = time.monotonic_ns()
        (self.root / name).unlink()
        durable = self._sync((self.root / name).parent)
        self.ledger.note(name, begun, durable, ABSENT)
