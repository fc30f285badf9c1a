"""The manifest of a recovery point: what was backed up, when, how, and where its chunks lie.

Errors: VerificationError for a manifest that is altered, truncated or impossible; TimezeroError for one of a newer
format.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from timezero.errors import TimezeroError
from timezero.repository import documents, files, index, names
from timezero.repository.documents import Fields
from timezero.repository.files import FileRecord

#: T0 by a session's gate; a source that nobody wrote to; a file copied through its file system, and so not at T0;
#: a source that may have changed meanwhile. The weakest last.
METHODS = ("session", "at-rest", "read-through", "fuzzy")
_METHODS_OF_FORMAT_1 = ("session", "at-rest", "fuzzy")
_METHOD = "|".join(METHODS)
_INSTANT_MAX = 2**63 - 1


class PackRecord(NamedTuple):
    """A pack that index entries refer to by `number`. It may belong to an earlier recovery point."""

    number: int
    name: str
    bytes: int


class DatasetRecord(NamedTuple):
    """A dataset of a recovery point.

    size, chunk_size: bytes. digest: SHA-256 of the index, in hex. intercepted: updates that the gate held;
    sidefile_high_water_bytes: the most that before-images took at once; both 0 when no one served the source. counts:
    how the chunks were obtained and what was moved. session: the gate's final report; None when no one served it.
    inode: of a dataset that is a file, whose name is VOLUME:/PATH; None for a volume. index_offset: where its index
    lies in the gathered indexes, in bytes; None when it is a file of its own.
    """

    name: str
    source: str
    method_requested: str
    method_used: str
    size: int
    chunk_size: int
    digest: str
    intercepted: int = 0
    sidefile_high_water_bytes: int = 0
    counts: Mapping[str, int] = MappingProxyType({})
    session: dict[str, int] | None = None
    inode: FileRecord | None = None
    index_offset: int | None = None

    @property
    def file(self) -> str:
        """The file name of its index."""
        return names.index_file(self.name) if self.index_offset is None else names.GATHERED_FILE

    @property
    def path(self) -> str | None:
        """The absolute path of a dataset that is a file; None for a volume."""
        return None if self.inode is None else self.inode.path(self.name)

    def to_json(self) -> dict[str, Any]:
        """The dataset's object in the manifest."""
        fields = self._asdict()
        del fields["inode"], fields["index_offset"]
        fields["counts"] = dict(self.counts)
        fields["file"] = self.file
        if self.index_offset is not None:
            fields["index_offset"] = self.index_offset
        if self.inode is not None:
            fields["inode"] = self.inode.to_json()
        return fields

    @property
    def header(self) -> index.IndexHeader:
        """The header its index must have."""
        return index.IndexHeader(self.chunk_size, self.size)


class FailureRecord(NamedTuple):
    """A dataset that was to be in the recovery point and is not, and why."""

    name: str
    error: str


class Manifest(NamedTuple):
    """Everything about a recovery point but its data. Instants are nanoseconds since the epoch.

    suspension: microseconds of each part of it; None without a session.
    """

    id: str
    repository: str
    timezero: str
    host: str
    t0_ns: int
    started_ns: int
    completed_ns: int
    track_size: int
    suspension: dict[str, int] | None
    packs: tuple[PackRecord, ...]
    datasets: tuple[DatasetRecord, ...]
    failed: tuple[FailureRecord, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all datasets."""
        return sum(dataset.size for dataset in self.datasets)

    @property
    def stored(self) -> int:
        """Bytes of the packs that this recovery point wrote itself."""
        return sum(pack.bytes for pack in self.packs if names.pack_owner(pack.name) == self.id)

    @property
    def method(self) -> str:
        """The weakest method used by a dataset."""
        return max((dataset.method_used for dataset in self.datasets), key=METHODS.index, default="session")

    def dataset(self, name: str) -> DatasetRecord | None:
        """The dataset of that name."""
        return next((dataset for dataset in self.datasets if dataset.name == name), None)

    @property
    def format(self) -> int:
        """The lowest format that says it all: 2 with gathered indexes or a method that readers of 1 do not know."""
        known = all(
            dataset.index_offset is None
            and dataset.method_used in _METHODS_OF_FORMAT_1
            and dataset.method_requested in _METHODS_OF_FORMAT_1
            for dataset in self.datasets
        )
        return names.FORMAT if known else names.MANIFEST_FORMAT

    def to_json(self) -> dict[str, Any]:
        """The members of the document, without its digest."""
        return {
            "format": self.format,
            **self._asdict(),
            "packs": [pack._asdict() for pack in self.packs],
            "datasets": [dataset.to_json() for dataset in self.datasets],
            "failed": [failure._asdict() for failure in self.failed],
        }

    def encode(self) -> bytes:
        """The manifest as it is stored."""
        return documents.render(self.to_json())


def parse(fields: Fields, point_id: str) -> Manifest:
    """The manifest in a document whose digest has been checked."""
    check_format(fields, f"recovery point {point_id}", names.MANIFEST_FORMAT)
    suspension = fields.object("suspension")
    manifest = Manifest(
        id=fields.text("id", 64),
        repository=fields.text("repository", 32, "[0-9a-f]{32}"),
        timezero=fields.text("timezero", 100),
        host=fields.text("host", 1024),
        t0_ns=fields.integer("t0_ns", 0, _INSTANT_MAX),
        started_ns=fields.integer("started_ns", 0, _INSTANT_MAX),
        completed_ns=fields.integer("completed_ns", 0, _INSTANT_MAX),
        track_size=fields.power_of_two("track_size", 4096, 1 << 20),
        suspension=None if suspension is None else fields.numbers("suspension"),
        packs=fields.each("packs", _pack),
        datasets=fields.each("datasets", _dataset),
        failed=fields.each("failed", _failure),
    )
    if manifest.id != point_id:
        fields.fail(f"it belongs to {manifest.id}")
    if not manifest.datasets:
        fields.fail("it has no datasets")
    for what, keys in (
        ("dataset", [dataset.name for dataset in manifest.datasets]),
        ("pack number", [pack.number for pack in manifest.packs]),
    ):
        if len(set(keys)) != len(keys):
            fields.fail(f"a {what} is there twice")
    return manifest


def check_format(fields: Fields, what: str, newest: int) -> None:
    """Refuse a document of a format that this version does not know."""
    version = fields.integer("format", 1)
    if version > newest:
        raise TimezeroError(
            f"{what}: has format {version}, and this timezero knows formats up to {newest}: use a newer timezero"
        )


def _pack(fields: Fields) -> PackRecord:
    name = fields.text("name", 100)
    if names.pack_owner(name) is None:
        fields.fail("'name' is not the name of a pack")
    return PackRecord(number=fields.integer("number", 0, 2**32 - 1), name=name, bytes=fields.integer("bytes"))


def _dataset(fields: Fields) -> DatasetRecord:
    name = fields.text("name", names.NAME_MAX_BYTES)
    if (problem := names.dataset_name_problem(name)) is not None:
        fields.fail(f"'name' cannot be that of a dataset: {problem}")
    inode = fields.object("inode") if "inode" in fields else None
    record = DatasetRecord(
        name=name,
        source=fields.text("source", 2 * names.NAME_MAX_BYTES),
        method_requested=fields.text("method_requested", 20, _METHOD),
        method_used=fields.text("method_used", 20, _METHOD),
        size=fields.integer("size", 0, index.SIZE_MAX),
        chunk_size=fields.power_of_two("chunk_size", index.CHUNK_MIN, index.CHUNK_MAX),
        digest=fields.text("digest", 64, "[0-9a-f]{64}"),
        intercepted=fields.integer("intercepted"),
        sidefile_high_water_bytes=fields.integer("sidefile_high_water_bytes"),
        counts=fields.numbers("counts"),
        session=None if fields.object("session") is None else fields.numbers("session"),
        inode=None if inode is None else files.parse(inode, name),
        index_offset=fields.integer("index_offset") if "index_offset" in fields else None,
    )
    if fields.text("file", 300) != record.file:
        fields.fail("'file' is not the index file of this dataset")
    return record


def _failure(fields: Fields) -> FailureRecord:
    return FailureRecord(name=fields.text("name", names.NAME_MAX_BYTES), error=fields.text("error", 1 << 16))
