"""A map of what of a dataset is sound and what is not, as GNU ddrescue writes and reads them.

Errors: TimezeroError.
"""

from __future__ import annotations

import os
import re

from timezero._native.mover import OUTCOMES
from timezero._version import __version__
from timezero.errors import TimezeroError
from timezero.repository import DatasetRecord, durable, names

_SOUND = bytes((OUTCOMES["stored"], OUTCOMES["kept"]))
_RUN = re.compile(rb"(?P<sound>[" + _SOUND + rb"]+)|[^" + _SOUND + rb"]+")


def render(record: DatasetRecord, outcomes: bytes) -> str:
    """The map: a line a run of chunks, `+` for what is sound, `-` for what is damaged."""
    size, chunk = record.size, record.chunk_size
    lines = [
        f"# Mapfile. Created by timezero {__version__}",
        f"# {record.name.encode('unicode_escape', 'surrogatepass').decode()}",
        "# current_pos  current_status  current_pass",
        f"0x{size:08X}     +               1",
        "#      pos        size  status",
    ]
    for run in _RUN.finditer(outcomes):
        begin, end = run.start() * chunk, min(run.end() * chunk, size)
        lines.append(f"0x{begin:08X}  0x{end - begin:08X}  {'+' if run['sound'] else '-'}")
    return "\n".join(lines) + "\n"


def write(path: str, record: DatasetRecord, outcomes: bytes) -> None:
    """Write the map of a dataset that has been salvaged to `path`, whole or not at all; what is there is replaced."""
    temporary = os.path.join(os.path.dirname(os.path.abspath(path)), names.temporary_name())
    try:
        try:
            durable.write_new(temporary, render(record, outcomes).encode("ascii"), mode=0o644)
            os.rename(temporary, path)
        finally:
            durable.remove(temporary)
    except OSError as error:
        raise TimezeroError(f"{path}: the map cannot be written: {error.strerror}") from error
