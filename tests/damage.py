"""Real damage to repositories, and what should be left of an image with some of its chunks gone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from timezero.jobs.batches import stored_chunks
from timezero.repository import Repository
from timezero.repository.index import ENTRY_BYTES


class Stored:
    """The only dataset of the newest recovery point of a repository: where its chunks lie."""

    def __init__(self, repo: Path) -> None:
        self.repo = repo
        self.point = Repository(str(repo)).point("latest")
        (self.record,) = self.point.datasets
        self.entries = self.point.entries(self.record)
        self.chunk = self.record.chunk_size

    @property
    def stored(self) -> list[int]:
        """Numbers of the chunks that lie in packs."""
        return list(stored_chunks(self.entries))

    def place(self, number: int) -> tuple[Path, int]:
        """The pack of a chunk, and where in it."""
        entry = self.entries[number * ENTRY_BYTES : (number + 1) * ENTRY_BYTES]
        pack = next(p for p in self.point.manifest.packs if p.number == int.from_bytes(entry[8:12], "little"))
        return self.repo / "packs" / pack.name, int.from_bytes(entry[:8], "little")

    def flip(self, number: int, at: int = 0) -> None:
        """One bit of a stored chunk."""
        path, offset = self.place(number)
        flip(path, offset + at)

    @property
    def index(self) -> Path:
        return self.repo / "recovery-points" / self.point.id / self.record.file

    @property
    def manifest(self) -> Path:
        return self.repo / "recovery-points" / self.point.id / "manifest.json"

    def lost(self, numbers: Iterable[int]) -> list[dict[str, int]]:
        """What `losses` should say of these chunks: no two of them side by side."""
        size = self.record.size
        return [{"offset": n * self.chunk, "length": min(self.chunk, size - n * self.chunk)} for n in numbers]


def flip(path: Path, offset: int) -> None:
    """One bit of a file, past everybody's back."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def without(content: bytes, ranges: Iterable[dict[str, int]], filler: bytes = b"\0") -> bytes:
    """`content` with these ranges gone."""
    left = bytearray(content)
    for each in ranges:
        left[each["offset"] : each["offset"] + each["length"]] = filler * each["length"]
    return bytes(left)
