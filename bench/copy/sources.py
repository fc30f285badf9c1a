"""Files to be copied: incompressible, and half empty in the two ways that files are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size_of(text: str) -> int:
    """Bytes of `4096`, `64K`, `1M`, `8G`."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text)


def name_of(size: int) -> str:
    """The other way: `64K`."""
    for unit in ("G", "M", "K"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def make_source(path: Path, size: int, *, empty: int = 0, holes: bool = False) -> Path:
    """Incompressible content without two equal chunks: a block of random bytes, stamped anew each time it is used.

    empty: bytes; every other stretch of so many is empty. holes: as holes, otherwise as zeros that were written.
    """
    block = np.random.default_rng(1).integers(0, 1 << 63, size=(16 << 20) // 8, dtype=np.uint64)
    with path.open("wb") as out:
        for start in range(0, size, block.nbytes):
            block[:: 1 << 9] += np.uint64(start + 1)
            data = block.view(np.uint8)[: min(block.nbytes, size - start)]
            if not empty:
                out.write(data.data)
                continue
            for at in range(0, len(data), empty):
                piece = data[at : at + empty]
                if (start + at) // empty % 2 == 0:
                    out.write(piece.data)
                elif holes:
                    out.seek(len(piece), os.SEEK_CUR)
                else:
                    out.write(bytes(len(piece)))
        out.truncate(size)
        os.fsync(out.fileno())
    return path
