"""What is left of an index whose disk has lost a part of it."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from timezero.errors import VerificationError
from timezero.repository import index
from timezero.repository.index import IndexHeader

CHUNK = 1 << 20


@pytest.mark.parametrize("bad", [0, 4096, 300 * 4096, 1171 * 4096], ids=str)
def test_a_bad_sector_costs_an_index_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    header = IndexHeader(4096, 100_000 * 4096)
    stored = header.encode() + b"".join(
        struct.pack("<QII8x16s8x", number * 4096, 0, 4096, number.to_bytes(16, "big")) for number in range(100_000)
    )
    path = tmp_path / "a.idx"
    path.write_bytes(stored)
    read = os.pread

    def fails(fd: int, length: int, offset: int) -> bytes:
        if offset < bad + 512 and bad < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, length, offset)

    monkeypatch.setattr(os, "pread", fails)
    left = bytearray(stored)
    left[bad : bad + 4096] = bytes(len(left[bad : bad + 4096]))
    assert index.read_as_is(str(path), 0, header) == left[64:]


def test_an_index_of_which_nothing_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a.idx").write_bytes(bytes(64 + 48))
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(VerificationError, match="cannot be read"):
        index.read_as_is(str(tmp_path / "a.idx"), 0, IndexHeader(CHUNK, CHUNK))
