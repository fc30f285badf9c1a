"""What a job needs of memory is looked at before it begins: buffers in use in any case, and its indexes."""

from __future__ import annotations

import pytest

from timezero._linux import machine
from timezero.errors import TimezeroError
from timezero.jobs.moving import Moving
from timezero.jobs.options import MoverOptions

MIB = 1 << 20
BUFFERS = 8 * MIB  # 8 chunks in flight to begin with


@pytest.mark.parametrize(
    ("indexed", "there", "is_refused"),
    [
        (False, BUFFERS, False),  # and not all of the buffer space, which may never be used
        (False, BUFFERS - 1, True),
        (True, BUFFERS + 64 * 48, False),
        (True, BUFFERS + 64 * 48 - 1, True),
    ],
)
def test_what_would_be_killed_is_refused(
    monkeypatch: pytest.MonkeyPatch, indexed: bool, there: int, is_refused: bool
) -> None:
    monkeypatch.setattr(machine, "memory_available", lambda swap: there)
    sizes = [60 * MIB, 4 * MIB - 1]
    if not is_refused:
        Moving(MoverOptions(), MIB, sizes, indexed=indexed).stop()
        return
    with pytest.raises(TimezeroError, match=r"not enough memory: 8\.00 MiB of buffers .*--buffer.*--chunk-size"):
        Moving(MoverOptions(), MIB, sizes, indexed=indexed)
