"""The T0 oracle: is there one instant that explains every cell of every volume of a group?

A volume was written by `blockload` processes, each with a log. Each update took effect at some instant between its
start and its acknowledgement. The updates of one cell never overlap in time, so they have one order. If a
cell of the backup holds its update k, then T0 is not before the start of update k and not after the
acknowledgement of update k + 1. T0 explains the group when it lies in the interval of every cell, and when
no update is partly in the backup and partly not.

Nothing here knows timezero: only images and logs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CELL = 512
MAGIC = 0x4C4C454330544B42
FILL_CONNECTION = 0xFFFFFFFF
NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)

RECORD = np.dtype(
    [
        *((name, "<u8") for name in ("sequence", "start", "acknowledged", "offset")),
        *((name, "<u4") for name in ("length", "kind")),
    ]
)
HEAD = np.dtype([("magic", "<u8"), ("volume", "<u4"), ("connection", "<u4"), ("offset", "<u8"), ("sequence", "<u8")])


@dataclass
class Verdict:
    """What the oracle found.

    earliest, latest: the instants that explain the group, CLOCK_MONOTONIC nanoseconds (empty when earliest > latest).
    faults: what no instant can explain, one line each; an empty list means the backup is the state of one instant.
    """

    earliest: int = 0
    latest: int = int(NEVER)
    cells: int = 0
    updates: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def explained(self) -> bool:
        return not self.faults


@dataclass
class _Cells:
    """Cells of one volume with more than one possible instant interval: content zero, which names no update."""

    label: str
    cell: np.ndarray  # cell number of each candidate
    low: np.ndarray  # its interval
    high: np.ndarray


def explain(volumes: list[tuple[Path, int, list[Path]]], window: tuple[int, int] | None = None) -> Verdict:
    """Judge the images of a group: (image, volume number, logs of its connections) each.

    window: (ns, ns) that T0 must lie in as far as an observer outside knows, CLOCK_MONOTONIC.
    """
    verdict = Verdict()
    if window:
        verdict.earliest, verdict.latest = window
    ambiguous = [_explain_volume(verdict, *volume) for volume in volumes]
    if verdict.earliest > verdict.latest:
        verdict.faults.append(
            f"no instant: a cell needs T0 at or after {verdict.earliest}, another needs it "
            f"{(verdict.earliest - verdict.latest) / 1000:.0f} us before that"
        )
        return verdict
    _explain_zeros(verdict, ambiguous)
    return verdict


def _explain_volume(verdict: Verdict, image: Path, number: int, logs: list[Path]) -> _Cells:
    data = np.fromfile(image, dtype=np.uint8)
    cells = len(data) // CELL
    sector = data[: cells * CELL].reshape(cells, CELL)
    head = sector[:, : HEAD.itemsize].copy().view(HEAD).reshape(cells)
    label = image.name
    verdict.cells += cells

    zero = ~sector.any(axis=1)
    for cell in np.flatnonzero(~zero):
        raw = sector[cell].tobytes()
        if zlib.crc32(raw[:508]) != int.from_bytes(raw[508:], "little"):
            verdict.faults.append(f"{label}: cell at {cell * CELL}: torn or foreign content")
    where = np.arange(cells, dtype=np.uint64) * np.uint64(CELL)
    wrong = ~zero & ((head["magic"] != MAGIC) | (head["volume"] != number) | (head["offset"] != where))
    for cell in np.flatnonzero(wrong)[:5]:
        verdict.faults.append(f"{label}: cell at {cell * CELL}: content of another place: {head[cell]}")
    if verdict.faults:
        return _Cells(label, *(np.empty(0, np.uint64) for _ in range(3)))

    updates, owner, cell, update = _history(verdict, label, cells, logs)
    return _judge_cells(verdict, label, head, zero, updates, owner, cell, update)


def _history(verdict: Verdict, label: str, cells: int, logs: list[Path]):
    """All updates of a volume, and their effect on each cell, sorted by cell and time.

    Returns (updates, owner connection of each update, cell numbers, index of the update) of each effect.
    """
    parts = [(np.fromfile(log, dtype=RECORD), index) for index, log in enumerate(logs)]
    updates = np.concatenate([p for p, _ in parts]) if parts else np.empty(0, RECORD)
    owner = np.concatenate([np.full(len(p), index) for p, index in parts]) if parts else np.empty(0, int)
    verdict.updates += len(updates)
    count = (updates["length"] // CELL).astype(np.int64)
    update = np.repeat(np.arange(len(updates)), count)
    within = np.arange(len(update)) - np.repeat(np.cumsum(count) - count, count)
    cell = (updates["offset"][update] // CELL).astype(np.int64) + within
    order = np.lexsort((updates["start"][update], cell))
    cell, update = cell[order], update[order]
    same = cell[1:] == cell[:-1]
    if (updates["acknowledged"][update[:-1]][same] > updates["start"][update[1:]][same]).any():
        raise ValueError(f"{label}: the load wrote a cell twice at the same time; its log proves nothing")
    return updates, owner, cell, update


def _judge_cells(verdict, label, head, zero, updates, owner, cell, update) -> _Cells:
    cells = len(head)
    first = np.searchsorted(cell, np.arange(cells))  # where each cell's history begins
    beyond = np.searchsorted(cell, np.arange(cells), side="right")
    acknowledged = np.append(updates["acknowledged"][update], NEVER)
    start = updates["start"][update]
    # the instant from which a next update makes a state impossible, by position in the history
    superseded = acknowledged[1:].copy() if len(update) else np.empty(0, np.uint64)
    last = np.flatnonzero(np.append(cell[1:] != cell[:-1], True)) if len(cell) else np.empty(0, int)
    superseded[last] = NEVER
    before_first = np.where(first < beyond, acknowledged[np.minimum(first, len(update))], NEVER)

    # cells that name their update: the position of it in the history of the cell
    named = np.flatnonzero(~zero & (head["connection"] != FILL_CONNECTION))
    key = (cell.astype(np.uint64) << np.uint64(34)) | updates["sequence"][update]
    by_key = np.argsort(key, kind="stable")
    want = (named.astype(np.uint64) << np.uint64(34)) | head["sequence"][named]
    at = np.searchsorted(key[by_key], want)
    found = at < len(key)
    found[found] = key[by_key][at[found]] == want[found]
    position = by_key[np.minimum(at, max(len(key) - 1, 0))] if len(key) else at
    if len(key):
        found &= owner[update[position]] == head["connection"][named]
        found &= updates["kind"][update[position]] == 0
    for lost in named[~found][:5]:
        verdict.faults.append(f"{label}: cell at {lost * CELL}: holds an update that nobody issued: {head[lost]}")
    if not found.all():
        return _Cells(label, *(np.empty(0, np.uint64) for _ in range(3)))

    filled = np.flatnonzero(~zero & (head["connection"] == FILL_CONNECTION))
    if len(named):
        verdict.earliest = max(verdict.earliest, int(start[position].max()))
        verdict.latest = min(verdict.latest, int(superseded[position].min()))
    if len(filled):
        verdict.latest = min(verdict.latest, int(before_first[filled].min()))
    _judge_torn(verdict, label, updates, update, cell, first, named, position, filled)

    # zero content: what was there at the beginning, or any zeroing of the cell
    blank = np.flatnonzero(zero)
    zeroing = np.flatnonzero((updates["kind"][update] != 0) & zero[cell]) if len(update) else np.empty(0, int)
    return _Cells(
        label,
        np.concatenate([blank, cell[zeroing]]),
        np.concatenate([np.zeros(len(blank), np.uint64), start[zeroing]]),
        np.concatenate([before_first[blank], superseded[zeroing]]),
    )


def _judge_torn(verdict, label, updates, update, cell, first, named, position, filled) -> None:
    """An update is in the backup in all of its cells or in none (cells of zeros say nothing here)."""
    included_up_to = np.full(len(first), -2, dtype=np.int64)  # -2: says nothing
    included_up_to[named] = position
    included_up_to[filled] = first[filled] - 1
    says = included_up_to[cell] != -2
    # a filled cell whose history begins at 0 would give -1, which is "none", as wanted
    included = np.arange(len(cell)) <= included_up_to[cell]
    inside = np.zeros(len(updates), bool)
    outside = np.zeros(len(updates), bool)
    inside[update[says & included]] = True
    outside[update[says & ~included]] = True
    for torn in np.flatnonzero(inside & outside)[:5]:
        verdict.faults.append(f"{label}: an update is torn: {updates[torn]}")


def _explain_zeros(verdict: Verdict, volumes: list[_Cells]) -> None:
    """Narrow the verdict to an instant of its interval that is in some interval of every zero cell."""
    low, high = np.uint64(verdict.earliest), np.uint64(verdict.latest)
    candidates = {int(low), int(high)}
    doubtful = []
    for v in volumes:
        lows, highs = np.maximum(v.low, low), np.minimum(v.high, high)
        possible = lows <= highs
        whole = possible & (lows == low) & (highs == high)
        certain = np.unique(v.cell[whole])
        for cell in np.setdiff1d(np.unique(v.cell), certain):
            mine = possible & (v.cell == cell)
            if not mine.any():
                verdict.faults.append(f"{v.label}: cell at {cell * CELL}: zeros, which no instant explains")
                if len(verdict.faults) > 5:
                    return
                continue
            intervals = list(zip(lows[mine].tolist(), highs[mine].tolist(), strict=True))
            doubtful.append(intervals)
            candidates.update(edge for interval in intervals for edge in interval)
    if verdict.faults:
        return
    good = [t for t in sorted(candidates) if all(any(a <= t <= b for a, b in cell) for cell in doubtful)]
    if not good:
        verdict.faults.append("no instant explains all cells of zeros together")
        return
    verdict.earliest, verdict.latest = good[0], good[-1]
