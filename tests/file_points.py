"""Recovery points of file datasets, made of plain files: what a backup of a mounted volume writes, without one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from timezero._native.mover import PackWriter, Sink, Source
from timezero.concordance.metadata import Metadata
from timezero.jobs.batches import batches
from timezero.jobs.moving import Moving, raise_first
from timezero.jobs.options import MoverOptions
from timezero.repository import DatasetRecord, FileRecord, IndexHeader, Manifest, Repository
from timezero.repository.files import dataset_name

CHUNK = 1 << 20


def commit_files(
    repo: Path, files: Mapping[str, Path], *, volume: str = "data", chunk_size: int = CHUNK, gather: bool = True
) -> str:
    """Back up files as datasets of `volume`, {path in the recovery point: file here}. The recovery point's id."""
    repository = Repository.open_or_create(str(repo))
    with repository.writer() as writer:
        packs_fd = os.open(writer.packs_path, os.O_RDONLY | os.O_DIRECTORY)
        packs = PackWriter(packs_fd, writer.id)
        try:
            records: list[DatasetRecord] = []
            plain = [_record(volume, path, file, chunk_size) for path, file in files.items()]
            sources = {dataset_name(volume, path): file for path, file in files.items()}
            for batch in batches(plain, 3):
                records += _move(writer, packs, batch, sources, chunk_size, gather)
            sizes = packs.finish()
            writer.commit(
                Manifest(
                    id=writer.id,
                    repository=repository.info.id,
                    timezero="0",
                    host="here",
                    t0_ns=1,
                    started_ns=0,
                    completed_ns=2,
                    track_size=65536,
                    suspension=None,
                    packs=writer.pack_records(sizes),
                    datasets=tuple(records),
                )
            )
        finally:
            packs.close()
            os.close(packs_fd)
        return writer.id


def _record(volume: str, path: str, file: Path, chunk_size: int) -> DatasetRecord:
    fd = os.open(file, os.O_RDONLY)
    try:
        status, metadata = os.fstat(fd), Metadata.of(fd)
    finally:
        os.close(fd)
    return DatasetRecord(
        name=dataset_name(volume, path),
        source=str(file),
        method_requested="session",
        method_used="session",
        size=status.st_size,
        chunk_size=chunk_size,
        digest="",
        inode=FileRecord(volume, min(status.st_blocks * 512, status.st_size), metadata),
    )


def _move(writer, packs, batch, sources, chunk_size, gather):  # type: ignore[no-untyped-def]
    records = []
    with Moving(MoverOptions(), chunk_size, [record.size for record in batch]) as machine:
        for record in batch:
            fd = os.open(sources[record.name], os.O_RDONLY)
            machine.add(record.name, Source.file(fd, record.size), Sink.packs(packs), target="repository", index=True)
            os.close(fd)
        machine.run(lambda done: None)
        raise_first(machine.transfers)
        for record, transfer in zip(batch, machine.transfers, strict=True):
            header, entries = IndexHeader(chunk_size, record.size), machine.index(transfer)
            if gather:
                offset, digest = writer.gather_index(header, entries)
                records.append(record._replace(digest=digest, index_offset=offset))
            else:
                digest = writer.add_index(record.name, header, entries)
                records.append(record._replace(digest=digest))
    return records
