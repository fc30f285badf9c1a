"""Which depth and chunk size: timezero copy alone, over both, on disk and between loop devices over memory.

The tables kept in README.md come from here; the defaults are what they say.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.copy import peers
from bench.copy.sources import make_source, name_of
from bench.copy.topics import GIB, MEMORY, Result, Settings, folder
from bench.measure import Contender, alternate
from proof.stack import loop_device

DEPTHS = (1, 2, 4, 8, 16, 32)
CHUNKS = (256 << 10, 1 << 20, 4 << 20)
_DEFAULT = "1M, depth 8"


def sweep(settings: Settings) -> list[Result]:
    """One table a place; `ratio` is over the default."""
    results = []
    with ExitStack() as stack:
        here = stack.enter_context(folder(settings.directory))
        source, target = make_source(here / "source", settings.size), here / "target"
        results.append(_table(settings, "file on disk to a new file", source, target))
    with ExitStack() as stack:
        here = stack.enter_context(folder(MEMORY))
        source = stack.enter_context(loop_device(make_source(here / "source", settings.size)))
        target = stack.enter_context(loop_device(make_source(here / "target", settings.size)))
        results.append(_table(settings, "loop device over memory to another", source, target))
    return results


def _table(settings: Settings, what: str, source: Path, target: Path) -> Result:
    device = target.is_block_device()

    def fresh() -> None:
        if not device:
            target.unlink(missing_ok=True)

    rows = []
    for chunk in CHUNKS:
        for depth in DEPTHS:
            command = [peers.TIMEZERO, "copy", str(source), str(target), "--chunk-size", str(chunk)]
            command += ["--depth", str(depth), "--buffer", str(max(2, depth) * chunk)]
            rows.append(Contender(f"{name_of(chunk)}, depth {depth}", command, fresh, system_cpu=device))
    alternate(rows, settings.rounds)
    ours = next(row for row in rows if row.name == _DEFAULT)
    return Result(f"sweep: {settings.size / GIB:g} GiB, {what}", settings.size, rows, ours=ours)
