"""The digest with zero detection, beside XXH3-128 alone, on the same chunk."""

from __future__ import annotations

import numpy as np
import pytest

from timezero._native.digest import digest, digest_chunk, is_zero

CHUNK = 1 << 20
CHUNKS = 128  # together larger than any cache


CONTENTS = ["data", "zeros", "zeros, then data", "zeros but one byte"]


@pytest.fixture(scope="module", params=CONTENTS)
def content(request) -> tuple[str, np.ndarray]:
    """The last one is the worst case: all of the chunk is read for zeros in vain."""
    data = np.full(CHUNKS * CHUNK, 0, dtype=np.uint8)
    if request.param == "data":
        data = np.random.default_rng(2).integers(0, 256, CHUNKS * CHUNK, dtype=np.uint8)
    elif request.param == "zeros, then data":
        data.reshape(CHUNKS, CHUNK)[:, CHUNK // 2 :] = 0xA5
    elif request.param == "zeros but one byte":
        data[CHUNK - 1000 :: CHUNK] = 1  # near the end, and at none of the places glanced at
    return request.param, data


@pytest.mark.parametrize("where", ["in cache", "from memory"])
@pytest.mark.parametrize("who", ["XXH3-128 alone", "with zero detection", "zero detection alone"])
def test_chunk(kernel, content: tuple[str, np.ndarray], where: str, who: str) -> None:
    what, data = content
    chunks = [data[at : at + CHUNK] for at in range(0, data.size, CHUNK)]
    if where == "in cache":
        chunks = chunks[:1] * 16
    function = {"XXH3-128 alone": digest, "with zero detection": digest_chunk, "zero detection alone": is_zero}[who]

    def run() -> None:
        for chunk in chunks:
            function(chunk)

    kernel(f"digest of {what}, chunks of 1 MiB {where}", who, run, count=len(chunks) * CHUNK, unit="GB/s")
