# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

cdef extern from "tz/bitmap.h" nogil:
    const uint64_t TZ_BITMAP_NONE
    ctypedef struct tz_bitmap:
        uint64_t bits
    size_t tz_bitmap_bytes(uint64_t bits)
    void tz_bitmap_init(tz_bitmap *map, void *memory, uint64_t bits)
    bint tz_bitmap_test(const tz_bitmap *map, uint64_t bit)
    bint tz_bitmap_claim(tz_bitmap *map, uint64_t bit)
    bint tz_bitmap_unclaim(tz_bitmap *map, uint64_t bit)
    uint64_t tz_bitmap_set_range(tz_bitmap *map, uint64_t from_, uint64_t count)
    uint64_t tz_bitmap_clear_range(tz_bitmap *map, uint64_t from_, uint64_t count)
    bint tz_bitmap_any(const tz_bitmap *map, uint64_t from_, uint64_t count)
    bint tz_bitmap_all(const tz_bitmap *map, uint64_t from_, uint64_t count)
    uint64_t tz_bitmap_count(const tz_bitmap *map, uint64_t from_, uint64_t count)
    uint64_t tz_bitmap_next_set(const tz_bitmap *map, uint64_t from_)
    uint64_t tz_bitmap_next_clear(const tz_bitmap *map, uint64_t from_)


cdef class Bitmap:
    cdef tz_bitmap map
    cdef Py_buffer view # holds the memory
