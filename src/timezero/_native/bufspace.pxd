# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "tz/bufspace.h" nogil:
    enum:
        TZ_BUFSPACE_HUGE
        TZ_BUFSPACE_LOCK
        TZ_BUFSPACE_LATER
    ctypedef struct tz_bufspace:
        pass
    ctypedef struct tz_area:
        pass
    ctypedef struct tz_bufspace_stats:
        uint64_t frame_size
        uint32_t frames
        uint32_t frames_taken
        uint32_t frames_peak
        uint32_t areas
        uint32_t areas_waiting
        uint32_t areas_total
        bint huge
        bint locked
    ctypedef void (*tz_area_notify)(void *user) noexcept nogil
    int tz_bufspace_create(tz_bufspace **out, size_t frame_size, uint32_t frames, uint32_t minimum, unsigned flags)
    void tz_bufspace_ready(tz_bufspace *space, uint32_t frames)
    void tz_bufspace_destroy(tz_bufspace *space)
    void tz_bufspace_stats_get(tz_bufspace *space, tz_bufspace_stats *out)
    void *tz_bufspace_base(const tz_bufspace *space, size_t *bytes)
    int tz_area_request(tz_area **out, tz_bufspace *space, uint32_t useful, tz_area_notify notify, void *user)
    bint tz_area_granted(tz_area *area)
    uint32_t tz_area_quota(tz_area *area)
    void *tz_area_take(tz_area *area)
    void tz_area_give(tz_area *area, void *frame)
    void tz_area_release(tz_area *area)
