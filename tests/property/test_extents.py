"""The extent map against a table with an entry for every byte."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timezero._native.bitmap import Bitmap
from timezero._native.extents import NONE, ZERO, ExtentMap

# (gap before it, length, physical address, zero?): in logical order without overlap, shuffled later. Few addresses, so
# that physical ones are shared often; each stands for `unit` bytes, so that they are large as well.
PIECES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 40), st.booleans()), max_size=30)
UNITS = st.sampled_from([1, 512, 4096, 2**40])


class Table:
    """Extents, and what lies at every logical address."""

    def __init__(self, pieces: list[tuple[int, int, int, bool]], follow: bool, unit: int) -> None:
        self.unit = unit
        self.rows: list[tuple[int, int, int, int]] = []
        self.kind: dict[int, str] = {}
        self.place: dict[int, int] = {}
        self.seen_at: dict[int, list[int]] = defaultdict(list)
        at, next_place = 0, 0
        for gap, length, place, zero in pieces:
            at += gap
            place = next_place if follow else place
            next_place = place + length
            self.rows.append((at * unit, place * unit, length * unit, ZERO if zero else 0))
            for i in range(length):
                self.kind[at + i] = "zero" if zero else "data"
                if not zero:
                    self.place[at + i] = place + i
                    self.seen_at[place + i].append(at + i)
            at += length
        self.end = at

    def build(self, order: list[tuple[int, int, int, int]]) -> ExtentMap:
        columns = np.array(order, dtype=np.uint64).reshape(-1, 4)
        logical, physical, length = (np.ascontiguousarray(columns[:, i]) for i in range(3))
        return ExtentMap(logical, physical, length, columns[:, 3].astype(np.uint32), reverse=True)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, ExtentMap]:
    table = Table(draw(PIECES), draw(st.booleans()), draw(UNITS))
    return table, table.build(draw(st.permutations(table.rows)))


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(0, 2**40))
def test_runs(made: tuple[Table, ExtentMap], inside: int) -> None:
    table, extents = made
    inside %= table.unit
    for unit_at in range(table.end + 2):
        run = extents.lookup(unit_at * table.unit + inside)
        kind = table.kind.get(unit_at, "hole")
        assert (run.logical, run.kind) == (unit_at * table.unit + inside, kind)
        place = table.place.get(unit_at)
        assert run.physical == (None if place is None else place * table.unit + inside)
        end = unit_at + 1
        while end <= table.end and table.kind.get(end, "hole") == kind:
            if kind == "data" and table.place[end] != place + end - unit_at:
                break
            end += 1
        length = 2**64 - 1 - run.logical if end > table.end else end * table.unit - run.logical
        assert run.length == length


@settings(max_examples=100, deadline=None)
@given(tables())
def test_extents_are_the_runs(made: tuple[Table, ExtentMap]) -> None:
    table, extents = made
    listed = [extents[i] for i in range(len(extents))]
    assert listed == [extents.lookup(extent.logical) for extent in listed]
    assert sum(extent.length for extent in listed) == len(table.kind) * table.unit
    assert extents.data_bytes == len(table.place) * table.unit


@settings(max_examples=150, deadline=None)
@given(tables(), st.lists(st.integers(0, 220), max_size=150), st.booleans(), st.booleans())
def test_batches(made: tuple[Table, ExtentMap], where: list[int], ascending: bool, in_place: bool) -> None:
    table, extents = made
    addresses = np.array(sorted(where) if ascending else where, dtype=np.uint64) * np.uint64(table.unit)
    units = (addresses // np.uint64(table.unit)).tolist()
    forward = [table.place[at] * table.unit if at in table.place else NONE for at in units]
    assert extents.lookup_batch(addresses).tolist() == forward
    back = [min(table.seen_at[at]) * table.unit if table.seen_at[at] else NONE for at in units]
    out = addresses if in_place else np.empty_like(addresses)
    assert extents.reverse_batch(addresses, out) is out
    assert out.tolist() == back


@settings(max_examples=100, deadline=None)
@given(tables())
def test_reverse(made: tuple[Table, ExtentMap]) -> None:
    table, extents = made
    for at in range(max(table.seen_at, default=0) + 2):
        runs = extents.reverse(at * table.unit)
        assert [run.logical for run in runs] == [logical * table.unit for logical in sorted(table.seen_at[at])]
        for run in runs:
            assert run == extents.lookup(run.logical)


@settings(max_examples=100, deadline=None)
@given(tables(), st.integers(0, 4))
def test_tracks(made: tuple[Table, ExtentMap], shift: int) -> None:
    table, extents = made
    track = table.unit << shift
    touched = {place >> shift for place in table.place.values()}
    bitmap = Bitmap(max(touched, default=-1) + 1)
    extents.tracks(track, bitmap)
    assert set(bitmap.positions().tolist()) == touched
    if touched:
        short = Bitmap(max(touched))
        with pytest.raises(IndexError):
            extents.tracks(track, short)
        assert not short.any()


@settings(max_examples=100, deadline=None)
@given(tables().filter(lambda made: made[0].rows), st.data())
def test_overlap_is_refused(made: tuple[Table, ExtentMap], data: st.DataObject) -> None:
    table, _ = made
    logical, _, length, _ = data.draw(st.sampled_from(table.rows))
    start = data.draw(st.integers(max(0, logical - 3), logical + length - 1))
    extra = (start, 0, max(1, logical - start + 1), data.draw(st.sampled_from([0, ZERO])))
    with pytest.raises(ValueError, match="overlap"):
        table.build(data.draw(st.permutations([*table.rows, extra])))
