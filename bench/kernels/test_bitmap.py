"""Bitmap scan and claim. A bit is a track: 2**27 of them are 8 TiB at the default track size."""

from __future__ import annotations

import numpy as np
import pytest

from timezero._native.bitmap import Bitmap

BITS = 1 << 27
BYTES = BITS // 8
CLAIMS = 1_000_000


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    return np.zeros(BYTES // 8, dtype=np.uint64)


@pytest.mark.parametrize("size", [BYTES, 256 << 20], ids=["16MiB", "256MiB"])
@pytest.mark.parametrize("who", ["numpy.bitwise_or", "numpy.any", "next_set", "any", "count"])
def test_scan(kernel, size: int, who: str) -> None:
    """Through words of which none is set: bytes a second. The first row is a plain read, as fast as NumPy has one;
    16 MiB stay in the last level of cache, 256 come from memory."""
    words = np.full(size // 8, 0, dtype=np.uint64)
    bitmap = Bitmap(size * 8, words)
    function = {
        "numpy.bitwise_or": lambda: np.bitwise_or.reduce(words),
        "numpy.any": words.any,
        "next_set": bitmap.next_set,
        "any": bitmap.any,
        "count": bitmap.count,
    }[who]
    assert not kernel(f"bitmap scan, {size >> 20} MiB", who, function, count=size, unit="GB/s")


@pytest.mark.parametrize("order", ["ascending", "random"])
@pytest.mark.parametrize("who", ["numpy, not atomic", "claim_batch", "test_batch"])
def test_claim(kernel, words: np.ndarray, order: str, who: str) -> None:
    bitmap = Bitmap(BITS, words)
    rng = np.random.default_rng(1)
    bits = rng.choice(BITS, CLAIMS, replace=False).astype(np.uint64)
    if order == "ascending":
        bits.sort()
    out = np.empty(CLAIMS, dtype=np.bool_)
    flags = np.zeros(BITS, dtype=np.bool_)

    def numpy_claim() -> None:
        np.logical_not(flags[bits], out=out)
        flags[bits] = True

    def clear() -> None:
        bitmap.clear_range()
        flags[bits] = False

    function, args = {
        "numpy, not atomic": (numpy_claim, ()),
        "claim_batch": (bitmap.claim_batch, (bits, out)),
        "test_batch": (bitmap.test_batch, (bits, out)),
    }[who]
    kernel(f"bitmap claim, {order}", who, function, *args, count=CLAIMS, setup=clear)
    assert out.all() or who == "test_batch"


@pytest.mark.parametrize("who", ["set_range", "positions"])
def test_ranges(kernel, words: np.ndarray, who: str) -> None:
    """A thousandth of the bits, in a row; and their numbers."""
    bitmap = Bitmap(BITS, words)
    count = BITS // 1000
    bitmap.clear_range()
    bitmap.set_range(12345, count)
    function, args = {"set_range": (bitmap.set_range, (12345, count)), "positions": (bitmap.positions, (0, BITS))}[who]
    kernel(f"bitmap {who}, a bit", who, function, *args, count=count)
