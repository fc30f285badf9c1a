"""Digests of chunks: XXH3-128, canonical (big-endian) bytes, and zero detection.

`data` is any contiguous buffer of bytes (TypeError, BufferError when it is not). Calls release the GIL.
"""

from typing_extensions import Buffer

DIGEST_BYTES: int  # 16

def digest(data: Buffer) -> bytes:
    """The digest: 16 bytes."""

def digest_chunk(data: Buffer) -> tuple[bytes, bool]:
    """The digest, and whether all of data is zero (True for no data), found in one pass."""

def digest_zeros(length: int) -> bytes:
    """The digest of `length` zero bytes, without having them. OverflowError when length is negative."""

def is_zero(data: Buffer) -> bool:
    """Are all bytes zero? Stops at the first that is not. True for no data."""
