"""Extent lookup among a million extents, beside numpy.searchsorted on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest

from timezero._native.bitmap import Bitmap
from timezero._native.extents import NONE, ExtentMap

EXTENTS = 1_000_000
QUERIES = 1_000_000
BLOCK = 4096


class Map:
    """Extents of 1 to 16 blocks with gaps of 1 to 16, physically anywhere; the columns are in no order."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        size = rng.integers(1, 17, EXTENTS, dtype=np.uint64) * np.uint64(BLOCK)
        gap = rng.integers(1, 17, EXTENTS, dtype=np.uint64) * np.uint64(BLOCK)
        order = rng.permutation(EXTENTS)
        self.starts = np.cumsum(size + gap, dtype=np.uint64) - size
        self.columns = [
            self.starts[order],
            (rng.permutation(EXTENTS).astype(np.uint64) * np.uint64(16 * BLOCK)),
            size[order],
        ]
        self.extents = ExtentMap(*self.columns, reverse=True)
        self.end = int(self.starts[-1] + size[-1])
        self.random = rng.integers(0, self.end, QUERIES, dtype=np.uint64)
        self.sorted = np.sort(self.random)
        self.out = np.empty(QUERIES, dtype=np.uint64)
        self.physical = self.extents.lookup_batch(self.random)


@pytest.fixture(scope="module")
def the_map() -> Map:
    return Map()


@pytest.mark.parametrize("who", ["numpy.searchsorted", "lookup_batch", "reverse_batch"])
def test_random(kernel, the_map: Map, who: str) -> None:
    if who == "numpy.searchsorted":  # the rank alone: neither the physical address nor whether it is a hole
        kernel(
            "extent lookup, random, 1e6 extents", who, np.searchsorted, the_map.starts, the_map.random, count=QUERIES
        )
        return
    batch, queries = (
        (the_map.extents.lookup_batch, the_map.random)
        if who == "lookup_batch"
        else (the_map.extents.reverse_batch, the_map.physical)
    )
    found = kernel("extent lookup, random, 1e6 extents", who, batch, queries, the_map.out, count=QUERIES)
    assert (found != np.uint64(NONE)).any()


@pytest.mark.parametrize("who", ["numpy.searchsorted", "lookup_batch"])
def test_sorted(kernel, the_map: Map, who: str) -> None:
    topic = "extent lookup, sorted, 1e6 extents"
    if who == "numpy.searchsorted":
        kernel(topic, who, np.searchsorted, the_map.starts, the_map.sorted, count=QUERIES)
    else:
        kernel(topic, who, the_map.extents.lookup_batch, the_map.sorted, the_map.out, count=QUERIES)


@pytest.mark.parametrize("who", ["lookup, one a call"])
def test_single(kernel, the_map: Map, who: str) -> None:
    """What a Python loop over single lookups costs, and so what batches are for."""
    some = the_map.random[:10_000].tolist()
    kernel(
        "extent lookup, random, 1e6 extents", who, lambda: [the_map.extents.lookup(at) for at in some], count=len(some)
    )


@pytest.mark.parametrize("who", ["numpy.sort", "numpy.argsort", "ExtentMap", "ExtentMap, reverse"])
def test_build(kernel, the_map: Map, who: str) -> None:
    topic = "extent map from 1e6 unsorted extents"
    if who.startswith("numpy"):
        function = np.sort if who == "numpy.sort" else np.argsort
        kernel(topic, who, function, the_map.columns[0], count=EXTENTS)
    else:
        made = kernel(topic, who, lambda: ExtentMap(*the_map.columns, reverse="reverse" in who), count=EXTENTS)
        assert len(made) == EXTENTS


def test_tracks(kernel, the_map: Map) -> None:
    tracks = Bitmap(EXTENTS * 16 // 16 + 1)
    kernel("domain from 1e6 extents", "tracks", the_map.extents.tracks, 16 * BLOCK, tracks, count=EXTENTS)
    assert tracks.count() == EXTENTS
