"""Bitmaps of atomic 64-bit words: tracks, claims, domains.

Ranges are `count` bits from bit `start`; count None means to the end. Bit numbers are integers from 0 up to, not
including, the length; anything else raises IndexError (past the end) or OverflowError (negative, 2**64 or more), and
then nothing was changed. Changes are atomic a word at a time, sequentially consistent, between threads and between
processes that share the memory. Calls over ranges and batches release the GIL.

Batches take a one-dimensional contiguous buffer of uint64 bit numbers, shape (n,), such as a NumPy array; ValueError
when it is something else.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Bitmap:
    """`bits` bits, clear, in memory of its own; or over `memory`, as it is, shared with its owner and held.

    memory: any writable contiguous buffer, aligned to 8 bytes, of bits / 8 bytes rounded up to whole words, or more.
    ValueError when it is smaller or not aligned; BufferError or ValueError, as its owner says, when it is not
    contiguous or cannot be written. OverflowError, MemoryError: no such number of bits.
    """

    def __init__(self, bits: int, memory: Buffer | None = None) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, bit: int) -> bool:
        """Is the bit set?"""

    @property
    def words(self) -> memoryview:
        """The memory itself, 64 bits a word, bit 0 lowest: `numpy.asarray(bitmap.words)` shares it."""

    def claim(self, bit: int) -> bool:
        """Set the bit; True when this call did, so that one of several claimers wins."""

    def unclaim(self, bit: int) -> bool:
        """Clear the bit; True when this call did."""

    def set_range(self, start: int = 0, count: int | None = None) -> int:
        """Set all bits of the range; how many were clear."""

    def clear_range(self, start: int = 0, count: int | None = None) -> int:
        """Clear all bits of the range; how many were set."""

    def any(self, start: int = 0, count: int | None = None) -> bool:
        """Is a bit of the range set? False for an empty range."""

    def all(self, start: int = 0, count: int | None = None) -> bool:
        """Are all bits of the range set? True for an empty range."""

    def count(self, start: int = 0, count: int | None = None) -> int:
        """How many bits of the range are set."""

    def next_set(self, start: int = 0) -> int | None:
        """The first set bit at or after `start`, which may be past the end; None when there is none."""

    def next_clear(self, start: int = 0) -> int | None:
        """The first clear bit at or after `start`, which may be past the end; None when there is none."""

    def test_batch(self, bits: NDArray[np.uint64], out: Any = None) -> Any:
        """For each bit whether it is set: shape (n,), bool, a new array or `out` (n writable bytes)."""

    def claim_batch(self, bits: NDArray[np.uint64], out: Any = None) -> Any:
        """Set the bits in order; for each whether this call set it, as in test_batch. A bit named twice is won once."""

    def set_batch(self, bits: NDArray[np.uint64]) -> int:
        """Set the bits; how many were clear."""

    def clear_batch(self, bits: NDArray[np.uint64]) -> int:
        """Clear the bits; how many were set."""

    def positions(self, start: int = 0, count: int | None = None) -> NDArray[np.uint64]:
        """The numbers of the set bits of the range, ascending."""
