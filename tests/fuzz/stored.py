"""What a repository says, when somebody else wrote it: documents, manifests, and jobs that read and restore them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from tests.command import snapshot
from tests.fuzz.base import Input, Target, nothing_left_open
from timezero import cli
from timezero._native.digest import digest
from timezero.concordance.metadata import Metadata
from timezero.errors import TimezeroError
from timezero.jobs.options import MoverOptions
from timezero.jobs.restore import restore
from timezero.jobs.verify import verify
from timezero.repository import (
    DatasetRecord,
    FileRecord,
    IndexHeader,
    Manifest,
    PackRecord,
    Repository,
    documents,
    index,
    manifest,
    names,
)
from timezero.units import MIB

_CHUNK = 4096
_ID, _REPOSITORY = "20260101T000000Z-00010002", "0123456789abcdef" * 2
_OPTIONS = MoverOptions(buffer_bytes=MIB, engine="threads")
#: Where nothing waits for a disk.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_EXIT_CODES = {0, 1, 2, 3, 6, 10, 11}

# ---- a good repository ----


def _entry(pack: bytearray, content: bytes) -> bytes:
    """The entry of a chunk, whose content goes to the pack."""
    if not any(content):
        return struct.pack("<QIIBB6x16sQ", 0, 0, 0, 1, 0, digest(content), 0)
    entry = struct.pack("<QIIBB6x16sQ", len(pack), 0, len(content), 0, 0, digest(content), 0)
    pack += content + bytes(-len(content) % 4096)
    return entry


def _record(name: str, entries: bytes, size: int, place: int | None) -> DatasetRecord:
    header = IndexHeader(_CHUNK, size)
    inode = None
    if place is not None:
        inode = FileRecord("data", size, Metadata(0o640, 0, 0, 1, 2, {"user.a": b"b"}))
    return DatasetRecord(
        name=name,
        source=f"/somewhere/{name}",
        method_requested="session",
        method_used="session",
        size=size,
        chunk_size=_CHUNK,
        digest=index.digest(header, entries),
        counts={"chunks": header.chunks},
        session={"images": 1},
        inode=inode,
        index_offset=place,
    )


def good_repository() -> dict[str, bytes]:
    """{path: content} of a repository with a volume, three files and one recovery point; the same every time."""
    pack, gathered, records = bytearray(), bytearray(), []
    disk = [bytes(range(256)) * 16, bytes(4096), b"end" * 30]
    entries = b"".join(_entry(pack, chunk) for chunk in disk)
    records.append(_record("disk", entries, sum(map(len, disk)), None))
    own = records[0].header.encode() + entries
    for path, content in {"/etc/hosts": b"127.0.0.1\n", "/etc/empty": b"", "/etc/sub/x": b"x" * 5000}.items():
        chunks = [content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)]
        entries = b"".join(_entry(pack, chunk) for chunk in chunks)
        records.append(_record(f"data:{path}", entries, len(content), len(gathered)))
        gathered += records[-1].header.encode() + entries
    name = names.pack_name(_ID, 0)
    said = Manifest(
        id=_ID,
        repository=_REPOSITORY,
        timezero="0",
        host="here",
        t0_ns=3,
        started_ns=2,
        completed_ns=4,
        track_size=4096,
        suspension={"total_us": 5},
        packs=(PackRecord(0, name, len(pack)),),
        datasets=tuple(records),
    )
    info = {"format": 1, "id": _REPOSITORY, "created_ns": 1, "timezero": "0", "chunk_size": _CHUNK, "track_size": 4096}
    point = f"{names.POINTS_DIR}/{_ID}"
    return {
        names.REPOSITORY_FILE: documents.render(info),
        f"{point}/{names.MANIFEST_FILE}": said.encode(),
        f"{point}/{names.GATHERED_FILE}": bytes(gathered),
        f"{point}/disk{names.INDEX_SUFFIX}": own,
        f"{names.PACKS_DIR}/{name}": bytes(pack),
    }


_GOOD = good_repository()
_PATHS = tuple(_GOOD)
_TRAILER = len(documents.render({})) - 2


def _signed(content: bytes) -> bytes:
    """A document with its digest right, whatever it says."""
    return content + b' "digest": "sha256:%s"\n}\n' % hashlib.sha256(content).hexdigest().encode()


# ---- documents and manifests ----


def document(data: bytes) -> None:
    """A manifest that is taken says the same when it is written anew, and every path in it stays where it belongs."""
    try:
        said = manifest.parse(documents.parse(_signed(data), "here"), _ID)
    except TimezeroError:
        return
    assert manifest.parse(documents.parse(said.encode(), "here"), _ID) == said
    for record in said.datasets:
        assert "/" not in record.file and not record.file.startswith(".")
        if record.path is not None:
            assert not {"", ".", ".."} & set(record.path[1:].split("/"))
    assert not any("/" in pack.name for pack in said.packs)


def document_seeds() -> Mapping[str, bytes]:
    """Documents without their digests."""
    return {Path(path).stem: _GOOD[path][:-_TRAILER] for path in _PATHS if path.endswith(".json")}


# ---- whole repositories ----


def _with_digest(files: dict[str, bytes], path: str) -> None:
    """Make the digests right that cover a file: its own, or those in the manifest."""
    if path.endswith(".json"):
        files[path] = _signed(files[path])
        return
    place = next(path for path in _PATHS if path.endswith(names.MANIFEST_FILE))
    said: dict[str, Any] = json.loads(files[place])
    del said["digest"]
    for record in said["datasets"]:
        at = record.get("index_offset")
        if path.endswith(record["file"]):
            whole = IndexHeader(record["chunk_size"], record["size"]).file_bytes
            part = files[path] if at is None else files[path][at : at + whole]
            record["digest"] = hashlib.sha256(part).hexdigest()
    for pack in said["packs"]:
        if path.endswith(pack["name"]):
            pack["bytes"] = len(files[path])
    files[place] = documents.render(said)


def repository(data: bytes) -> None:
    """Everything that reads a repository: an error of ours or none; nothing is written but below the target.

    The first byte says which file is replaced, the second whether digests are made right; the rest is its content.
    """
    given = Input(data)
    path, terms = _PATHS[given.byte() % len(_PATHS)], given.byte()
    files = {**_GOOD, path: given.rest()}
    if terms & 1:
        _with_digest(files, path)
    with tempfile.TemporaryDirectory(prefix="timezero-fuzz-", dir=_MEMORY) as base, nothing_left_open():
        box = Path(base, "a", "b", "c")
        for name, content in files.items():
            (box / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
            (box / "repo" / name).write_bytes(content)
        (box / "target").mkdir()
        before = _outside(base)
        _use(box)
        assert _outside(base) == before


def _outside(base: str) -> dict[str, str]:
    """Everything but what is in the targets."""
    return {name: what for name, what in snapshot(Path(base)).items() if not name.startswith("a/b/c/target/")}


def _use(box: Path) -> None:
    repo = str(box / "repo")
    with suppress(TimezeroError):
        opened = Repository(repo)
        points, _ = opened.points()
        for point in points:
            for record in point.datasets:
                with suppress(TimezeroError):
                    point.entries(record)
    with suppress(TimezeroError):
        verify(repo, mover=_OPTIONS)
    for dataset, target in ((None, "target/all"), ("disk", "target/image"), ("data:/etc", "target/etc")):
        with suppress(TimezeroError):
            restore(repo, "latest", str(box / target), dataset=dataset, mover=_OPTIONS)
    for words in (("show", "latest"), ("list",)):
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as strict as a terminal
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            assert cli._run([words[0], "--repo", repo, *words[1:]]) in _EXIT_CODES


def repository_seeds() -> Mapping[str, bytes]:
    """Each file as it is, believed and not."""
    found = {}
    for number, path in enumerate(_PATHS):
        whole, cut = _GOOD[path], _GOOD[path][: -_TRAILER if path.endswith(".json") else None]
        found[f"{Path(path).name}-0"] = bytes((number, 0)) + whole
        found[f"{Path(path).name}-1"] = bytes((number, 1)) + cut
    return found


TARGETS = (Target("document", document, document_seeds), Target("repository", repository, repository_seeds))
