"""The repository, format 1: recovery points as immutable files (docs/repository-format.md).

Everything is imported when it is first used: a copy needs the names of files, and no manifest.
"""

from typing import TYPE_CHECKING

from timezero._late import late

if TYPE_CHECKING:
    from timezero.repository.files import FileRecord
    from timezero.repository.index import IndexHeader
    from timezero.repository.manifest import DatasetRecord, FailureRecord, Manifest, PackRecord
    from timezero.repository.point import RecoveryPoint
    from timezero.repository.prune import PruneReport
    from timezero.repository.store import Repository
    from timezero.repository.writer import PointWriter

__all__ = [
    "DatasetRecord",
    "FailureRecord",
    "FileRecord",
    "IndexHeader",
    "Manifest",
    "PackRecord",
    "PointWriter",
    "PruneReport",
    "RecoveryPoint",
    "Repository",
]

__getattr__ = late(
    __name__,
    {
        "DatasetRecord": "timezero.repository.manifest",
        "FailureRecord": "timezero.repository.manifest",
        "FileRecord": "timezero.repository.files",
        "IndexHeader": "timezero.repository.index",
        "Manifest": "timezero.repository.manifest",
        "PackRecord": "timezero.repository.manifest",
        "PointWriter": "timezero.repository.writer",
        "PruneReport": "timezero.repository.prune",
        "RecoveryPoint": "timezero.repository.point",
        "Repository": "timezero.repository.store",
    },
)
