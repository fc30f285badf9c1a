"""The extent map's edges: bad input says what is wrong, foreign buffers, many extents."""

from __future__ import annotations

import array

import numpy as np
import pytest

from timezero._native.bitmap import Bitmap
from timezero._native.extents import NONE, ZERO, ExtentMap


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def flag_column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint32)


def test_a_concordance() -> None:
    extents = ExtentMap(
        column(8192, 0, 4096, 65536),
        column(0, 1 << 30, (1 << 30) + 4096, 77),
        column(4096, 4096, 4096, 8192),
        flag_column(0, 0, 0, ZERO),
        reverse=True,
    )
    assert [tuple(extents[i]) for i in range(len(extents))] == [
        (0, 1 << 30, 8192, "data"),
        (8192, 0, 4096, "data"),
        (65536, None, 8192, "zero"),
    ]
    assert extents.data_bytes == 12288
    assert extents.lookup(5000) == (5000, (1 << 30) + 5000, 3192, "data")
    assert extents.lookup(12288) == (12288, None, 53248, "hole")
    assert extents.reverse(100) == [(8292, 100, 3996, "data")]
    assert extents.reverse(77 + 4096) == []
    assert repr(extents) == "<ExtentMap: 3 extents, 12288 bytes of data>"
    domain = Bitmap(1 << 15)
    extents.tracks(65536, domain)
    assert domain.positions().tolist() == [0, 1 << 14]


def test_bad_columns_say_what_is_wrong() -> None:
    good = column(0, 10)
    with pytest.raises(ValueError, match="overlap"):
        ExtentMap(good, good, column(11, 1))
    with pytest.raises(ValueError, match="extent 1 at logical address 10 has length 0"):
        ExtentMap(good, good, column(1, 0))
    with pytest.raises(ValueError, match="extent 0 at logical address 0 has unknown flags 0x6"):
        ExtentMap(good, good, column(1, 1), flag_column(6, 0))
    with pytest.raises(ValueError, match="one length"):
        ExtentMap(good, column(1), column(1, 1))
    with pytest.raises(ValueError, match="flags must be as long"):
        ExtentMap(good, good, column(1, 1), flag_column(0))
    for logical, physical, length in ((2**63, 0, 1), (0, 2**63 - 1, 1), (0, 0, 2**64 - 1)):
        with pytest.raises(OverflowError, match="past the last address"):
            ExtentMap(column(logical), column(physical), column(length))
    with pytest.raises(ValueError):
        ExtentMap(np.array([1, 2]), good, good)  # signed
    with pytest.raises(TypeError):
        ExtentMap(None, good, good)  # type: ignore[arg-type]


def test_bad_questions() -> None:
    extents = ExtentMap(column(0), column(0), column(10))
    assert not extents.has_reverse
    with pytest.raises(ValueError, match="reverse=True"):
        extents.reverse(0)
    with pytest.raises(ValueError, match="reverse=True"):
        extents.reverse_batch(column(0))
    with pytest.raises(OverflowError):
        extents.lookup(-1)
    with pytest.raises(OverflowError):
        extents.lookup(2**64)
    with pytest.raises(IndexError):
        extents[1]
    with pytest.raises(ValueError, match="out has 1 places for 2 addresses"):
        extents.lookup_batch(column(0, 1), column(0))
    with pytest.raises(ValueError):
        extents.lookup_batch(column(0, 1), array.array("d", [0, 0]))
    for size in (0, 3, 4097):
        with pytest.raises(ValueError, match="power of two"):
            extents.tracks(size, Bitmap(10))
    with pytest.raises(IndexError, match="past the last of 0 tracks"):
        extents.tracks(4096, Bitmap(0))


def test_any_buffer_of_uint64_will_do() -> None:
    extents = ExtentMap(array.array("Q", [5]), array.array("Q", [50]), array.array("Q", [5]))
    addresses, out = array.array("Q", [4, 5, 9, 10, 2**64 - 1]), array.array("Q", [0] * 5)
    assert extents.lookup_batch(addresses, out) is out
    assert out.tolist() == [NONE, 50, 54, NONE, NONE]
    assert extents.lookup_batch(column()).shape == (0,)
    empty = ExtentMap(column(), column(), column(), reverse=True)
    assert len(empty) == 0
    assert empty.lookup(3) == (3, None, 2**64 - 4, "hole")
    assert empty.lookup_batch(column(1, 2)).tolist() == empty.reverse_batch(column(1, 2)).tolist() == [NONE, NONE]


@pytest.mark.parametrize("count", [1, 8, 9, 72, 73, 649, 20_000])
def test_many_extents_agree_with_searchsorted(count: int) -> None:
    """Sizes around those at which the search tree grows a layer; random, sorted and dense queries, unaligned keys."""
    rng = np.random.default_rng(count)
    gaps = rng.integers(2, 1 << 30, count, dtype=np.uint64)
    logical = np.cumsum(gaps, dtype=np.uint64)
    length = np.minimum(rng.integers(1, 1 << 30, count, dtype=np.uint64), np.append(gaps[1:], gaps[0]) - np.uint64(1))
    physical = rng.permutation(count).astype(np.uint64) << np.uint64(31)
    order = rng.permutation(count)
    extents = ExtentMap(logical[order], physical[order], length[order], reverse=True)
    assert len(extents) == count
    top = int(logical[-1] + length[-1]) + 5
    queries = rng.integers(0, top, 5000, dtype=np.uint64)
    for ask in (queries, np.sort(queries), np.arange(5000, dtype=np.uint64) * np.uint64(max(1, top // 5000 // 40))):
        rank = np.searchsorted(logical, ask, side="right").astype(np.int64) - 1
        at = np.maximum(rank, 0)
        inside = (rank >= 0) & (ask - logical[at] < length[at])
        expected = np.where(inside, physical[at] + (ask - logical[at]), np.uint64(NONE))
        found = extents.lookup_batch(ask)
        assert np.array_equal(found, expected)
        assert np.array_equal(extents.reverse_batch(found), np.where(inside, ask, np.uint64(NONE)))


def test_one_address_shared_by_very_many() -> None:
    """A reflinked block, and one giant extent below everything: each is found without looking at all others."""
    count = 5000
    logical = np.arange(count, dtype=np.uint64) * np.uint64(8192)
    physical = np.zeros(count, dtype=np.uint64)
    physical[count // 2 :] = np.arange(count - count // 2, dtype=np.uint64) * np.uint64(4096)
    length = np.full(count, 4096, dtype=np.uint64)
    giant = np.uint64(1 << 40)
    extents = ExtentMap(
        np.append(logical, giant), np.append(physical, np.uint64(0)), np.append(length, giant), reverse=True
    )
    assert len(extents.reverse(10)) == count // 2 + 2
    assert [run.logical for run in extents.reverse(4096)] == [int(logical[count // 2 + 1]), int(giant) + 4096]
    assert extents.reverse_batch(np.full(3, 1 << 35, dtype=np.uint64)).tolist() == [int(giant) + (1 << 35)] * 3
