"""Digests: known vectors, any buffer, bad input."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from timezero._native.digest import DIGEST_BYTES, digest, digest_chunk, digest_zeros, is_zero


def test_known_vectors() -> None:
    """From the algorithm's own tests: XXH3-128 of nothing and of one zero byte, canonical."""
    assert digest(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert digest_zeros(1).hex() == digest(b"\0").hex() == "a6cd5e9392000f6ac44bdff4074eecdb"
    assert DIGEST_BYTES == 16
    assert digest_chunk(b"") == (digest(b""), True)


def test_any_contiguous_buffer_will_do() -> None:
    expected = digest(b"\1\0\0\0\0\0\0\0")
    with mmap.mmap(-1, 8) as memory:
        assert is_zero(memory)
        memory[0] = 1
        for data in (bytearray(memory), memoryview(memory), memory, np.array([1], dtype="<u8")):
            assert digest(data) == expected
            assert digest_chunk(data) == (expected, False)
            assert not is_zero(data)


@pytest.mark.parametrize("call", [digest, digest_chunk, is_zero])
def test_what_is_no_buffer_of_bytes_is_refused(call) -> None:
    with pytest.raises(TypeError):
        call("text")
    with pytest.raises((BufferError, ValueError)):
        call(np.zeros(8, dtype=np.uint8)[::2])


def test_lengths() -> None:
    with pytest.raises(OverflowError):
        digest_zeros(-1)
