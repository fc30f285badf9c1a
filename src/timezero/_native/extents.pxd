# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t

from timezero._native.bitmap cimport tz_bitmap

cdef extern from "tz/extents.h" nogil:
    const uint64_t TZ_EXTENT_END
    const uint64_t TZ_EXTENT_NONE
    enum:
        TZ_EXTENT_ZERO
        TZ_EXTENTS_REVERSE
    ctypedef struct tz_extent:
        uint64_t logical
        uint64_t physical
        uint64_t length
        uint32_t flags
    ctypedef struct tz_extents:
        pass
    int tz_extents_build(tz_extents **out, const uint64_t *logical, const uint64_t *physical, const uint64_t *length,
                         const uint32_t *flags, uint64_t count, unsigned options)
    void tz_extents_destroy(tz_extents *map)
    uint64_t tz_extents_count(const tz_extents *map)
    tz_extent tz_extents_at(const tz_extents *map, uint64_t at)
    uint64_t tz_extents_bytes(const tz_extents *map)
    bint tz_extents_has_reverse(const tz_extents *map)
    bint tz_extents_lookup(const tz_extents *map, uint64_t logical, tz_extent *run)
    uint64_t tz_extents_reverse(const tz_extents *map, uint64_t physical, tz_extent *runs, uint64_t room)
    void tz_extents_lookup_batch(const tz_extents *map, const uint64_t *from_, uint64_t *to, uint64_t count)
    void tz_extents_reverse_batch(const tz_extents *map, const uint64_t *from_, uint64_t *to, uint64_t count)
    int tz_extents_tracks(const tz_extents *map, uint64_t track_size, tz_bitmap *tracks)


cdef class ExtentMap:
    cdef tz_extents *map # never NULL
