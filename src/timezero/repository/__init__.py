"""The repository, format 1: recovery points as immutable files (docs/repository-format.md)."""

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
