"""The bitmap's edges: bad input, foreign memory, threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from timezero._native.bitmap import Bitmap


def array(*bits: int) -> np.ndarray:
    return np.array(bits, dtype=np.uint64)


def test_memory_is_shared_with_its_owner() -> None:
    words = np.zeros(3, dtype=np.uint64)
    bitmap = Bitmap(130, words)
    assert bitmap.claim(129) and not bitmap.claim(129)
    assert words.tolist() == [0, 0, 2]
    words[0] = 5
    assert bitmap.positions().tolist() == [0, 2, 129]
    assert np.shares_memory(np.asarray(bitmap.words), words)
    assert bitmap.words.format == "Q" and len(bitmap.words) == 3


def test_memory_outlives_its_owners_name() -> None:
    bitmap = Bitmap(64, bytearray(8))
    bitmap.set_range()
    assert bitmap.words.tolist() == [2**64 - 1]
    own = Bitmap(65).words
    assert own.tolist() == [0, 0]


def test_memory_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="65 bits need 16 bytes of memory, not 8"):
        Bitmap(65, bytearray(8))
    with pytest.raises(ValueError, match="aligned"):
        Bitmap(8, memoryview(bytearray(32))[1:])
    with pytest.raises(BufferError):
        Bitmap(8, bytes(8))
    with pytest.raises(ValueError, match="contiguous"):
        Bitmap(64, np.zeros(8, dtype=np.uint64)[::2])
    with pytest.raises(TypeError):
        Bitmap(8, 64)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        Bitmap(-1)
    with pytest.raises(OverflowError):
        Bitmap(2**64)
    with pytest.raises(ValueError, match="need 2305843009213693952 bytes"):
        Bitmap(2**64 - 1, bytearray(8))


def test_bits_past_the_end_are_refused_and_nothing_changes() -> None:
    bitmap = Bitmap(100)
    for call in (bitmap.claim, bitmap.unclaim, bitmap.__getitem__):
        with pytest.raises(IndexError, match="bit 100 is past the end: the bitmap has 100"):
            call(100)
        with pytest.raises(OverflowError):
            call(-1)
    for ranged in (bitmap.set_range, bitmap.clear_range, bitmap.any, bitmap.all, bitmap.count, bitmap.positions):
        with pytest.raises(IndexError):
            ranged(101)
        with pytest.raises(IndexError):
            ranged(99, 2)
        with pytest.raises(IndexError):
            ranged(1, 2**64 - 1)
        with pytest.raises(OverflowError):
            ranged(0, -1)
    for batch in (bitmap.set_batch, bitmap.clear_batch, bitmap.claim_batch, bitmap.test_batch):
        with pytest.raises(IndexError):
            batch(array(3, 100))
    assert bitmap.count() == 0
    assert bitmap.next_set(2**64 - 1) is None and bitmap.next_clear(100) is None


def test_batches_want_uint64_and_room() -> None:
    bitmap = Bitmap(100)
    with pytest.raises(ValueError):
        bitmap.set_batch(np.array([1, 2], dtype=np.int32))
    with pytest.raises(ValueError):
        bitmap.set_batch(array(1, 2, 3, 4)[::2])
    with pytest.raises(TypeError):
        bitmap.set_batch(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out has 1 bytes, 2 are needed"):
        bitmap.claim_batch(array(1, 2), np.zeros(1, dtype=bool))
    with pytest.raises(ValueError, match="read-only"):
        bitmap.claim_batch(array(1, 2), bytes(2))
    assert bitmap.count() == 0
    out = np.ones(3, dtype=bool)
    assert bitmap.claim_batch(array(7, 7, 8), out) is out
    assert out.tolist() == [True, False, True]
    assert bitmap.test_batch(array()).tolist() == []


def test_every_bit_is_won_by_one_thread() -> None:
    bits = 1 << 16
    bitmap = Bitmap(bits)
    won: list[int] = []
    orders = [np.random.default_rng(seed).permutation(bits).astype(np.uint64) for seed in range(4)]
    threads = [threading.Thread(target=lambda o=o: won.append(int(bitmap.claim_batch(o).sum()))) for o in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sum(won) == bits and len(won) == 4
    assert bitmap.all()
