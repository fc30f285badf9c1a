"""Many datasets through one mover: how many at a time.

A mover takes thousands of transfers, and a thread each time it starts; but every transfer has files open, and of these
a process may have only so many.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from io import BytesIO

from timezero.repository import DatasetRecord
from timezero.repository.index import ENTRY_BYTES
from timezero.units import GIB

#: Datasets in a batch. 10,000 files of 4 KiB were restored in 2.6 s by batches of 128, 2.2 of 512, 2.25 of 1024 (median
#: of three alternating rounds on two cores); an interruption loses the work of a batch.
BATCH_MAX = 512
#: Bytes after which a batch is closed: small files do not wait for a large one to be whole.
_BYTES_MAX = GIB
#: Descriptors that are left for everything else.
_RESERVE = 64

#: Entries (tz_index_entry) seen as 32-bit words: which hold the pack's number and the stored length.
_WORDS, _PACK_WORD, _LENGTH_WORD = ENTRY_BYTES // 4, 2, 3


def batches(records: Iterable[DatasetRecord], descriptors: int) -> Iterator[list[DatasetRecord]]:
    """Cut `records` into batches of one chunk size, in their order. descriptors: open ones that a dataset costs."""
    most = max(1, min(BATCH_MAX, _descriptors_free() // descriptors))
    batch: list[DatasetRecord] = []
    size = 0
    for record in records:
        full = len(batch) >= most or size + record.size > _BYTES_MAX
        if batch and (full or record.chunk_size != batch[0].chunk_size):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.size
    if batch:
        yield batch


def packs_used(entries: bytes) -> set[int]:
    """The numbers of the packs that index entries refer to."""
    words = memoryview(entries).cast("I")
    packs, lengths = words[_PACK_WORD::_WORDS], words[_LENGTH_WORD::_WORDS]
    return {pack for pack, length in zip(packs, lengths, strict=True) if length}


def stored_chunks(entries: bytes) -> Iterator[int]:
    """The numbers of the chunks that lie in packs, by their index entries."""
    lengths = memoryview(entries).cast("I")[_LENGTH_WORD::_WORDS]
    return (number for number, length in enumerate(lengths) if length)


def entries_of(entries: bytes, numbers: Iterable[int]) -> bytes:
    """The index entries of these chunks, one after the other."""
    index, chosen = memoryview(entries), BytesIO()  # a list to join would be some hundred bytes an entry
    for number in numbers:
        chosen.write(index[number * ENTRY_BYTES : (number + 1) * ENTRY_BYTES])
    return chosen.getvalue()


def _descriptors_free() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 20
    return limit - len(os.listdir("/proc/self/fd")) - _RESERVE
