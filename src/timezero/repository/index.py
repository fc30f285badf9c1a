"""An index: a header of 64 bytes, then an entry of 48 bytes (tz_index_entry) a chunk. Little-endian.

It is a file of its own, or lies with others in the gathered indexes of its recovery point.

Errors: VerificationError when a file is not the index it should be.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import NamedTuple

from timezero.errors import VerificationError
from timezero.repository import documents

MAGIC = b"TZINDEX\n"
VERSION = 1
ENTRY_BYTES = 48
_HEADER = struct.Struct("<8sIIQQ32x")
HEADER_BYTES = _HEADER.size
#: Of an entry: its place, and how much lies there.
_COLUMNS = [("offset", "<u8"), ("pack", "<u4"), ("length", "<u4"), ("rest", "V32")]
#: Bytes that are read at once of an index that is damaged, and where that fails: what a bad sector costs at most.
_BLOCKS, _BLOCK = 1 << 20, 4096

CHUNK_MIN = 4096
CHUNK_MAX = 16 << 20
SIZE_MAX = 1 << 56


class IndexHeader(NamedTuple):
    """What an index says of its dataset. Sizes in bytes."""

    chunk_size: int
    size: int

    @property
    def chunks(self) -> int:
        """How many they are, and so the entries; the last one may be short."""
        return -(-self.size // self.chunk_size)

    @property
    def file_bytes(self) -> int:
        """Size of the index."""
        return HEADER_BYTES + self.chunks * ENTRY_BYTES

    def encode(self) -> bytes:
        """The header as it is stored."""
        return _HEADER.pack(MAGIC, VERSION, self.chunk_size, self.size, self.chunks)


def digest(header: IndexHeader, entries: bytes) -> str:
    """SHA-256 of the index, in hex."""
    state = hashlib.sha256(header.encode())
    state.update(entries)
    return state.hexdigest()


def read(path: str, expected: IndexHeader, expected_digest: str) -> bytes:
    """The entries of an index file that must have this header and this digest."""
    try:
        size = os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        raise VerificationError(f"{path}: the index is missing") from None
    except OSError as error:
        raise documents.unreadable(path, error) from error
    if size != expected.file_bytes:
        raise VerificationError(f"{path}: altered or truncated: {size} bytes instead of {expected.file_bytes}")
    return _checked(documents.read_limited(path, expected.file_bytes), path, expected, expected_digest)


def read_gathered(path: str, offset: int, expected: IndexHeader, expected_digest: str) -> bytes:
    """The entries of an index that lies at byte `offset` of the file of many."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise VerificationError(f"{path}: the indexes are missing") from None
    except OSError as error:
        raise documents.unreadable(path, error) from error
    try:
        size = os.fstat(fd).st_size
        if size - offset < expected.file_bytes:  # before memory is asked for
            raise VerificationError(f"{path}: altered or truncated: {size} bytes, and an index at {offset} needs more")
        content = os.pread(fd, expected.file_bytes, offset)
    except OSError as error:
        raise documents.unreadable(path, error) from error
    finally:
        os.close(fd)
    return _checked(content, f"{path}: at byte {offset}", expected, expected_digest)


def read_header(path: str) -> IndexHeader:
    """The header of an index that is a file of its own, as far as it can be one: of a file of just that size."""
    content = documents.read_limited(path, HEADER_BYTES + SIZE_MAX // CHUNK_MIN * ENTRY_BYTES, HEADER_BYTES)
    try:
        magic, version, chunk_size, size, _ = _HEADER.unpack(content)
    except struct.error:
        raise VerificationError(f"{path}: altered or truncated: it has no header") from None
    header = IndexHeader(chunk_size, size)
    possible = CHUNK_MIN <= chunk_size <= CHUNK_MAX and not chunk_size & (chunk_size - 1) and size <= SIZE_MAX
    if (magic, version) != (MAGIC, VERSION) or not possible or os.stat(path).st_size != header.file_bytes:
        raise VerificationError(f"{path}: altered or truncated: its header does not fit it")
    return header


def read_as_is(path: str, offset: int, expected: IndexHeader) -> bytes:
    """What is left of the entries of a damaged index: as many as there should be, in their places.

    What is not there or cannot be read, and what claims a place in a pack that another entry claims as well (so one of
    them belongs elsewhere), is zeros, which are no entry. The rest has lost its digest, but not those of its chunks;
    that a chunk is one of zeros, which lie nowhere, is proved by nothing then. Raises TimezeroError when there is
    nothing to read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise documents.unreadable(path, error) from error
    try:
        entries = bytearray(expected.chunks * ENTRY_BYTES)
        _read_around(fd, offset + HEADER_BYTES, entries)
    except OSError as error:
        raise documents.unreadable(path, error) from error
    finally:
        os.close(fd)
    _remove_doubles(entries)
    return bytes(entries)


def _read_around(fd: int, offset: int, into: bytearray) -> None:
    """Fill `into`, which is zeros, with what can be read from `offset` on. Raises OSError when no block can."""
    at, end = offset, offset + len(into)
    block, lost = _BLOCKS, 0
    while at < end:
        wanted = min(end, at // block * block + block) - at
        try:
            piece = os.pread(fd, wanted, at)
        except OSError as error:
            if error.errno not in documents.LOST:
                raise
            if block > _BLOCK:
                block = _BLOCK
                continue
            lost += wanted
            if lost == len(into):
                raise
            piece = bytes(wanted)
        else:
            if not piece:
                break
            if (at + len(piece)) % _BLOCKS == 0:
                block = _BLOCKS
        into[at - offset : at - offset + len(piece)] = piece
        at += len(piece)


def _remove_doubles(entries: bytearray) -> None:
    """What claims a place that another entry claims as well becomes zeros. Memory: no more than the entries take."""
    import numpy as np

    table = np.frombuffer(entries, dtype=_COLUMNS)
    stored = np.flatnonzero(table["length"])
    offset, pack = table["offset"][stored], table["pack"][stored]
    order = np.lexsort((pack, offset))
    offset, pack = offset[order], pack[order]
    next_too = (offset[1:] == offset[:-1]) & (pack[1:] == pack[:-1])
    double = np.zeros(len(stored), dtype=bool)
    double[1:] |= next_too
    double[:-1] |= next_too
    table.view(np.uint8).reshape(-1, ENTRY_BYTES)[stored[order[double]]] = 0


def _checked(content: bytes, path: str, expected: IndexHeader, expected_digest: str) -> bytes:
    if content[:HEADER_BYTES] != expected.encode():
        raise VerificationError(f"{path}: altered or truncated: its header does not fit the manifest")
    if hashlib.sha256(content).hexdigest() != expected_digest:
        raise VerificationError(f"{path}: altered or truncated: it does not match its digest")
    return content[HEADER_BYTES:]
