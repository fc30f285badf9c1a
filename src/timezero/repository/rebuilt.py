"""A recovery point whose manifest is damaged, as far as its other files tell: for salvaging.

That there is a manifest, in whatever state, says that the recovery point was committed: its indexes and packs were
durable before, and its session had ended well. The indexes of volumes are files that say whose they are and how large
the volume is; those of many files lie in one, and which is whose is lost with the manifest. So are the digests of the
indexes, which therefore count as damaged.
"""

from __future__ import annotations

import os
from contextlib import suppress

from timezero.errors import VerificationError
from timezero.repository import index, names
from timezero.repository.manifest import DatasetRecord, Manifest, PackRecord


def manifest(root: str, point_id: str, repository_id: str, problem: str) -> Manifest:
    """A manifest with the datasets that can be told. problem: what is wrong with the real one.

    Raises VerificationError when there are none.
    """
    directory = os.path.join(root, names.POINTS_DIR, point_id)
    datasets = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(names.INDEX_SUFFIX):
            with suppress(VerificationError):
                datasets.append(_dataset(directory, name))
    if not datasets:
        raise VerificationError(f"{problem}; nothing can be salvaged: no index is left that tells whose it is")
    return Manifest(
        id=point_id,
        repository=repository_id,
        timezero="",
        host="",
        t0_ns=0,
        started_ns=0,
        completed_ns=0,
        track_size=4096,
        suspension=None,
        packs=_packs(os.path.join(root, names.PACKS_DIR), point_id),
        datasets=tuple(datasets),
    )


def _dataset(directory: str, file: str) -> DatasetRecord:
    header = index.read_header(os.path.join(directory, file))
    return DatasetRecord(
        name=names.decode_component(file.removesuffix(names.INDEX_SUFFIX)),
        source="",
        method_requested="fuzzy",
        method_used="fuzzy",
        size=header.size,
        chunk_size=header.chunk_size,
        digest="",
    )


def _packs(directory: str, point_id: str) -> tuple[PackRecord, ...]:
    """Its packs carry its id, and their numbers are those in its indexes."""
    try:
        there = sorted(os.listdir(directory))
    except FileNotFoundError:  # all of them are missing, which is told of each chunk
        there = []
    found: list[PackRecord] = []
    for name in there:
        if names.pack_owner(name) == point_id:
            with suppress(FileNotFoundError):
                size = os.stat(os.path.join(directory, name)).st_size
                found.append(PackRecord(int(name.removesuffix(".pack").rpartition("-")[2]), name, size))
    return tuple(found)
