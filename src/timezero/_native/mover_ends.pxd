# SPDX-License-Identifier: Apache-2.0
from timezero._native.mover_c cimport tz_pack_writer, tz_session_view, tz_sink, tz_source


cdef class SessionView:
    cdef tz_session_view *ptr
    cdef tz_session_view *open(self) except NULL


cdef class Source:
    cdef tz_source *ptr


cdef class PackWriter:
    cdef tz_pack_writer *ptr
    cdef int users


cdef class Sink:
    cdef tz_sink *ptr
    cdef PackWriter writer
    cdef void release(self)
