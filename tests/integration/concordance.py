"""What tests of the concordance share: files designated on real file systems, and read from where they are mapped."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import numpy as np

from tests.integration.filesystems import FileSystem
from timezero.concordance.freezer import Freezer
from timezero.concordance.mapping import Concordance, FileMap, map_files
from timezero.concordance.selection import Designated, Selection, resolve

TRACK = 16384


def designate(system: FileSystem, *patterns: object, read_through: bool = False) -> Designated:
    return resolve([Selection("data", str(p)) for p in patterns], [system.mount()], read_through=read_through)


def content(pattern: str, size: int) -> bytes:
    return hashlib.shake_128(pattern.encode()).digest(size)


class Frozen:
    """What is found while frozen: the concordance, and the content of every file by it, from the device alone."""

    def __init__(self, system: FileSystem, designated: Designated) -> None:
        with Freezer([system.point]) as freezer:
            freezer.sync()
            freezer.freeze(30)
            self.concordance: Concordance = map_files(designated)
            # The backing file, not the device: nothing that the kernel keeps for the device can help.
            self.files = {file.dataset.path: read_physically(system.image, file) for file in self.concordance}
            freezer.thaw()

    def map_of(self, path: Path) -> FileMap:
        return next(file for file in self.concordance if file.dataset.path == str(path))


def extents(file: FileMap) -> list[tuple[int, int, int]]:
    return list(zip(file.logical.tolist(), file.physical.tolist(), file.length.tolist(), strict=True))


def read_physically(image: Path, file: FileMap) -> bytes:
    found = bytearray(file.size)
    assert (np.diff(file.logical.astype(np.int64)) > 0).all()
    assert (file.logical[1:] >= file.logical[:-1] + file.length[:-1]).all()
    descriptor = os.open(image, os.O_RDONLY | os.O_DIRECT)
    try:
        for logical, physical, length in extents(file):
            with mmap.mmap(-1, length) as memory:
                assert os.preadv(descriptor, [memory], physical) == length
                found[logical : logical + length] = memory[: max(0, min(length, file.size - logical))]
    finally:
        os.close(descriptor)
    assert len(found) == file.size
    return bytes(found)
