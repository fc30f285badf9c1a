"""The digest against the xxhash package, which is another build of the same algorithm."""

from __future__ import annotations

import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from timezero._native.digest import digest, digest_chunk, digest_zeros, is_zero

LENGTHS = st.one_of(
    st.integers(0, 600), st.integers(0, 20000), st.sampled_from([4095, 4096, 4097, 8192, 65536, 1 << 20])
)


def check(data: bytes) -> None:
    expected = xxhash.xxh3_128_digest(data)
    zero = not any(data)
    assert digest(data) == expected
    assert digest_chunk(data) == (expected, zero)
    assert is_zero(data) == zero


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1500), LENGTHS, st.integers(0, 7))
def test_data_after_zeros(data: bytes, zeros: int, skip: int) -> None:
    """Zeros of any length, then data, at any alignment."""
    whole = bytes(zeros) + data
    check(whole)
    check(memoryview(whole)[min(skip, len(whole)) :].tobytes())
    view = memoryview(whole)[min(skip, len(whole)) :]
    assert digest(view) == xxhash.xxh3_128_digest(view)


@settings(max_examples=150, deadline=None)
@given(LENGTHS.filter(bool), st.data())
def test_one_byte_among_zeros(length: int, data: st.DataObject) -> None:
    chunk = bytearray(length)
    check(chunk)
    chunk[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(1, 255))
    check(chunk)


@settings(max_examples=100, deadline=None)
@given(LENGTHS)
def test_zeros(length: int) -> None:
    assert digest_zeros(length) == xxhash.xxh3_128_digest(bytes(length))
