"""A map of what of a dataset is sound and what is not, as GNU ddrescue writes and reads them.

Errors: TimezeroError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial

from timezero._native.mover import OUTCOMES
from timezero._version import __version__
from timezero.errors import TimezeroError
from timezero.repository import DatasetRecord, durable, names

_SOUND = bytes((OUTCOMES["stored"], OUTCOMES["kept"]))
_RUN = re.compile(rb"(?P<sound>[" + _SOUND + rb"]+)|[^" + _SOUND + rb"]+")


def lines(record: DatasetRecord, outcomes: bytes) -> Iterator[str]:
    """The map: a line a run of chunks, `+` for what is sound, `-` for what is damaged."""
    size, chunk = record.size, record.chunk_size
    yield f"# Mapfile. Created by timezero {__version__}\n"
    yield f"# {record.name.encode('unicode_escape', 'surrogatepass').decode()}\n"
    yield "# current_pos  current_status  current_pass\n"
    yield f"0x{size:08X}     +               1\n"
    yield "#      pos        size  status\n"
    for run in _RUN.finditer(outcomes):
        begin, end = run.start() * chunk, min(run.end() * chunk, size)
        yield f"0x{begin:08X}  0x{end - begin:08X}  {'+' if run['sound'] else '-'}\n"


def write(path: str, record: DatasetRecord, outcomes: bytes) -> None:
    """Write the map of a dataset that has been salvaged to `path`, whole or not at all; what is there is replaced."""
    temporary = os.path.join(os.path.dirname(os.path.abspath(path)), names.temporary_name())
    try:
        try:
            with open(temporary, "x", encoding="ascii", opener=partial(os.open, mode=0o644)) as file:
                file.writelines(lines(record, outcomes))  # as they come: they may be half as many as chunks
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        finally:
            durable.remove(temporary)
    except OSError as error:
        raise TimezeroError(f"{path}: the map cannot be written: {error.strerror}") from error
