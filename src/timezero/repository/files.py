"""What a dataset that is a file has beside its content: the volume it lies on, its path, its metadata.

Paths come from a disk and go to one: they are absolute and plain (no empty component, no "." or ".."), or refused.
Text is that of the file system, bytes that are no UTF-8 as surrogate escapes (U+DC80 to U+DCFF).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from timezero.repository import index
from timezero.repository.documents import Fields

if TYPE_CHECKING:
    from timezero.concordance.metadata import Metadata

_COMPONENT_MAX_BYTES = 255


class FileRecord(NamedTuple):
    """A file on the file system of `volume`. data_size: bytes that are no holes."""

    volume: str
    data_size: int
    metadata: Metadata

    def to_json(self) -> dict[str, Any]:
        """The member `inode` of a dataset."""
        return {"volume": self.volume, "data_size": self.data_size, **self.metadata.to_json()}

    def path(self, dataset: str) -> str:
        """The absolute path within the name of a dataset, VOLUME:/PATH."""
        return dataset[len(self.volume) + 1 :]


def dataset_name(volume: str, path: str) -> str:
    """The name of the dataset that is the file `path` on `volume`."""
    return f"{volume}:{path}"


def path_problem(path: str) -> str | None:
    """Why `path` cannot be that of a file dataset; None when it can."""
    if not path.startswith("/"):
        return "its path is not absolute"
    for component in path[1:].split("/"):
        if component in ("", ".", ".."):
            return f"{component!r} is in its path"
        if len(component) > _COMPONENT_MAX_BYTES // 4 and len(os.fsencode(component)) > _COMPONENT_MAX_BYTES:
            return "a name in its path is too long"
    return None


def parse(fields: Fields, dataset: str) -> FileRecord:
    """The member `inode` of the dataset of that name, which has been checked to be one."""
    from timezero.concordance.metadata import Metadata

    volume = fields.text("volume", 4096)
    if not volume or not dataset.startswith(volume + ":"):
        fields.fail(f"'volume' is not that of {dataset!r}")
    try:
        metadata = Metadata.from_json(fields.raw())
        for name in metadata.xattrs:
            os.fsencode(name)
    except ValueError as error:
        fields.fail(str(error))
    record = FileRecord(volume, fields.integer("data_size", 0, index.SIZE_MAX), metadata)
    if (problem := path_problem(record.path(dataset))) is not None:
        fields.fail(f"{dataset!r} cannot be a file: {problem}")
    return record
