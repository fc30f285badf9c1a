"""The extent map: the concordance of one dataset, from dataset-logical to volume-physical addresses, and back.

Addresses and lengths are bytes. Columns are one-dimensional contiguous buffers of uint64, shape (n,), such as NumPy
arrays; ValueError when they are something else. A map is constant once built: any number of threads may use it.
Building and batch calls release the GIL.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from timezero._native.bitmap import Bitmap

ZERO: int
"""Flag: reads as zeros whatever lies on the volume (unwritten, preallocated), so it has no physical address."""

NONE: int
"""2**64 - 1: in batches, the counterpart of an address that has none."""

class Extent(NamedTuple):
    """A run of `length` bytes; physical is None in holes and zeros."""

    logical: int
    physical: int | None
    length: int
    kind: Literal["data", "zero", "hole"]

class ExtentMap:
    """From columns of n extents in any order; neighbours that continue each other, both ways, become one.

    flags: uint32, shape (n,), 0 or ZERO each; None: all data. reverse: look-up by physical address as well, at the
    price of more memory and building time. Physical addresses may be shared, logical ones may not.

    ValueError: extents overlap logically, a length is 0, columns differ in length, a flag is unknown. OverflowError: an
    extent ends past 2**63 - 1.
    """

    def __init__(
        self,
        logical: NDArray[np.uint64],
        physical: NDArray[np.uint64],
        length: NDArray[np.uint64],
        flags: NDArray[np.uint32] | None = None,
        *,
        reverse: bool = False,
    ) -> None: ...
    def __len__(self) -> int:
        """How many extents there are, after neighbours became one."""

    def __getitem__(self, at: int) -> Extent:
        """Extent number `at`, by logical address. IndexError past the last, OverflowError when negative."""

    @property
    def data_bytes(self) -> int:
        """Length of all extents that are data."""

    @property
    def has_reverse(self) -> bool: ...
    def lookup(self, logical: int) -> Extent:
        """The run from `logical` to the end of its extent, or, in a hole, to the next extent or to 2**64 - 1.

        OverflowError when logical is negative, or 2**64 and more.
        """

    def lookup_batch(self, logical: NDArray[np.uint64], out: Any = None) -> Any:
        """Physical addresses, NONE for holes and zeros: uint64, shape (n,), a new array or `out`, `logical` too."""

    def reverse(self, physical: int) -> list[Extent]:
        """The runs of data that start at `physical`, one for each logical address it is seen at, by logical address.

        ValueError when the map was built without reverse=True.
        """

    def reverse_batch(self, physical: NDArray[np.uint64], out: Any = None) -> Any:
        """Logical addresses, the lowest where there are several, NONE where there is none; else as lookup_batch."""

    def tracks(self, track_size: int, tracks: Bitmap) -> None:
        """Set the bit of every track of the volume that data touches: the domain of a session. Zeros touch none.

        ValueError when track_size (bytes) is not a power of two; IndexError, and nothing set, when data lies past the
        last track.
        """
