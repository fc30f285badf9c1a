# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef extern from "tz/digest.h" nogil:
    enum:
        TZ_DIGEST_BYTES
    ctypedef struct tz_digest:
        uint8_t bytes[16]
    bint tz_digest_chunk(tz_digest *out, const void *data, size_t length)
    void tz_digest_plain(tz_digest *out, const void *data, size_t length)
    void tz_digest_zeros(tz_digest *out, size_t length)
    bint tz_is_zero(const void *data, size_t length)
