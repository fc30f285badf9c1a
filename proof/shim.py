"""System calls of another program that fail, take long, or do less than they were asked: rules for proof/shim.c.

    shim = Shim(folder, "mover")
    subprocess.Popen(..., env=os.environ | shim.environment)
    shim.rule(0, WRITE | SYNC, "/srv/repository", error=errno.EIO, nth=7)

Rules may be changed while the program runs. Only calls of the C library are seen: TIMEZERO_IO=threads.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from proof.compiled import compiled

OPEN, READ, WRITE, SYNC, NAME, UNLINK, MKDIR, SIZE = (1 << bit for bit in range(8))
CALLS = {
    OPEN: "open", READ: "read", WRITE: "write", SYNC: "sync", NAME: "name", UNLINK: "unlink", MKDIR: "mkdir",
    SIZE: "size",
}  # fmt: skip
#: What a program does to make something of its own.
MAKING = OPEN | WRITE | SYNC | NAME | MKDIR | SIZE

SOURCE = Path(__file__).with_name("shim.c")
_HEAD, _RULE, _RULES = 256, 256, 8
_LAYOUT = struct.Struct("<6I3Q208s")


def build(directory: Path) -> Path:
    """The compiled library in `directory`; compiled again when its source is newer."""
    return compiled(SOURCE, directory / "shim.so", "-O1", "-shared", "-fPIC", "-ldl")


class Shim:
    """Rules for the programs that are started with `environment`."""

    def __init__(self, directory: Path, name: str, *, seed: int = 1) -> None:
        self._library = build(directory)
        self._path = directory / f"{name}.rules"
        self._path.write_bytes(struct.pack("<Q", seed) + bytes(_HEAD - 8 + _RULES * _RULE))
        with self._path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    @property
    def environment(self) -> dict[str, str]:
        """What to add to the program's."""
        return {"LD_PRELOAD": str(self._library), "TZ_SHIM": str(self._path)}

    def rule(
        self,
        number: int,
        calls: int,
        path: os.PathLike[str] | str,
        *,
        error: int = 0,
        nth: int = 0,
        per_million: int = 0,
        delay_us: int = 0,
        shorten: int = 0,
    ) -> None:
        """Calls on what begins with `path`: the `nth` (from 1), or `per_million`, fail with `error`, take `delay_us`
        longer (but no longer than the rule stands), move at most `shorten` bytes. Counts from here on."""
        raw = os.fsencode(path)
        at = _HEAD + number * _RULE
        if len(raw) >= 208:
            raise ValueError(f"{path!r} is too long")
        self._memory[at : at + 4] = bytes(4)  # while it changes it is about nothing
        self._memory[at + 4 : at + _RULE] = _LAYOUT.pack(
            0, error, per_million, delay_us, shorten, 0, nth, 0, 0, raw
        )[4:]  # fmt: skip
        self._memory[at : at + 4] = struct.pack("<I", calls)

    def clear(self) -> None:
        """No rule is left."""
        for number in range(_RULES):
            at = _HEAD + number * _RULE
            self._memory[at : at + 4] = bytes(4)

    def seen(self, number: int) -> int:
        """Calls that the rule was about."""
        return self._field(number, 7)

    def hits(self, number: int) -> int:
        """Calls that it was applied to."""
        return self._field(number, 8)

    def last(self, number: int) -> str:
        """The kind of the last of them."""
        return CALLS.get(self._field(number, 5), "none")

    def _field(self, number: int, field: int) -> int:
        at = _HEAD + number * _RULE
        return int(_LAYOUT.unpack(self._memory[at : at + _RULE])[field])
