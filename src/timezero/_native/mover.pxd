# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t

from timezero._native.bufspace cimport tz_bufspace
from timezero._native.mover_c cimport tz_mover


cdef class BufferSpace:
    cdef tz_bufspace *ptr
    cdef uint64_t frame_size
    cdef int users


cdef class Mover:
    cdef tz_mover *ptr
    cdef BufferSpace space
    cdef list transfers
    cdef uint32_t chunk_size
    cdef int alive(self) except -1
    cdef uint32_t number(self, transfer) except? 0xffffffff
