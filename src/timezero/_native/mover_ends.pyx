# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, binding=True
"""The two ends of a transfer: sources, sinks, and what they share: a session's memory, packs.

A source or sink is used up by the mover it is added to. A pack writer that sinks still point to is given
back with the last of them, so closing in any order is safe.
"""

import errno
import os
from array import array

from libc.stdint cimport uint32_t, uint64_t

from timezero._native.io cimport TZ_FILE_BUFFERED, TZ_FILE_WRITE, tz_file, tz_file_close, tz_file_open
from timezero._native.mover_c cimport *


cdef int reopen(tz_file *out, int fd, unsigned flags, str what) except -1:
    """A fresh open of what `fd` names: file status flags are not shared with the caller's descriptor."""
    cdef bytes path = b"/proc/self/fd/%d" % fd
    cdef const char *name = path
    cdef int result
    with nogil:
        result = tz_file_open(out, name, flags)
    return check(result, what)


cdef class SessionView:
    def __cinit__(self, handles):
        cdef tz_session_descriptors fds
        cdef int result
        names = ("owned_fd", "shared_fd", "drain_fd", "volume_fd", "file_fd")
        own = []
        try:
            for name in names:
                own.append(os.dup(handles[name]) if handles[name] >= 0 else -1)
            fds.owned_fd, fds.shared_fd, fds.drain_fd, fds.volume_fd, fds.file_fd = own
            with nogil:
                result = tz_session_view_open(&self.ptr, &fds)
            check(result, "its volume was made shorter" if result == -errno.ENODATA else "session's shared memory")
        except BaseException:
            for fd in own:
                if fd >= 0:
                    os.close(fd)
            raise

    def __dealloc__(self):
        tz_session_view_release(self.ptr)

    cdef tz_session_view *open(self) except NULL:
        if self.ptr is NULL:
            raise ValueError("the session view is closed")
        return self.ptr

    @property
    def size(self):
        return tz_session_view_size(self.open())

    @property
    def track_size(self):
        return tz_session_view_track_size(self.open())

    def close(self):
        tz_session_view_release(self.ptr)
        self.ptr = NULL


cdef class Source:
    def __init__(self):
        raise TypeError("use Source.file, Source.session, Source.extents or Source.index")

    def __dealloc__(self):
        tz_source_destroy(self.ptr)

    @property
    def size(self):
        if self.ptr is NULL:
            raise ValueError("the source is used up")
        return tz_source_size(self.ptr)

    @property
    def direct(self):
        if self.ptr is NULL:
            raise ValueError("the source is used up")
        return bool(tz_source_direct(self.ptr))

    @staticmethod
    def file(fd, size=None, *, buffered=False):
        cdef Source self = Source.__new__(Source)
        cdef tz_file file
        cdef int result
        reopen(&file, fd, TZ_FILE_BUFFERED if buffered else 0, "open source")
        result = tz_source_file(&self.ptr, &file, file.size if size is None else <uint64_t>size)
        if result < 0:
            tz_file_close(&file)
            check(result, f"source of {size} bytes in a file of {file.size}")
        return self

    @staticmethod
    def session(session):
        cdef Source self = Source.__new__(Source)
        cdef SessionView view = session if isinstance(session, SessionView) else SessionView(session)
        check(tz_source_session(&self.ptr, view.open()), "session")
        return self

    @staticmethod
    def extents(SessionView view not None, size, const uint64_t[::1] logical not None,
                const uint64_t[::1] physical not None, const uint64_t[::1] length not None):
        cdef Source self = Source.__new__(Source)
        cdef uint64_t bytes_in_all = size, count = logical.shape[0]
        if <uint64_t>physical.shape[0] != count or <uint64_t>length.shape[0] != count:
            raise ValueError("logical, physical and length must have one length")
        # With the GIL, so that nobody closes the view meanwhile. The address of an empty column is not looked at.
        check(
            tz_source_extents(
                &self.ptr, view.open(), bytes_in_all, &logical[0] if count else NULL, &physical[0] if count else NULL,
                &length[0] if count else NULL, count),
            f"{count} extents of a file of {size} bytes")
        return self

    @staticmethod
    def index(bytes entries, size, chunk_size, packs, *, salvage=False):
        cdef Source self = Source.__new__(Source)
        cdef uint64_t count = len(entries) // sizeof(tz_index_entry), bytes_in_all = size
        cdef uint32_t chunk = chunk_size
        cdef const char *raw = entries
        cdef uint32_t[::1] numbers
        cdef int[::1] fds
        cdef int result
        if len(entries) % sizeof(tz_index_entry):
            raise OSError(errno.EBADMSG, "index: not a whole number of entries")
        # One element more: a memory view of an empty array has no first element to point to.
        numbers = array("I", [*packs.keys(), 0])
        fds = array("i", [*packs.values(), -1])
        if salvage:
            result = tz_source_salvage(
                &self.ptr, <const tz_index_entry *>raw, count, bytes_in_all, chunk, &numbers[0], &fds[0], len(packs))
        else:
            result = tz_source_index(
                &self.ptr, <const tz_index_entry *>raw, count, bytes_in_all, chunk, &numbers[0], &fds[0], len(packs))
        check(result, "index")
        return self


cdef class PackWriter:
    def __cinit__(self, dir_fd, prefix, *, max_bytes=0):
        cdef bytes name = os.fsencode(prefix)
        check(tz_pack_writer_create(&self.ptr, dir_fd, name, max_bytes), f"packs {prefix}")

    def __dealloc__(self):
        tz_pack_writer_destroy(self.ptr)

    def finish(self):
        cdef uint32_t packs = 0, i
        cdef uint64_t total = 0
        cdef int result
        if self.ptr is NULL:
            raise ValueError("the pack writer is closed")
        with nogil:
            result = tz_pack_writer_finish(self.ptr, &packs, &total)
        check(result, "make packs durable")
        return [tz_pack_writer_pack_bytes(self.ptr, i) for i in range(packs)]

    def close(self):
        if self.users == 0:
            tz_pack_writer_destroy(self.ptr)
            self.ptr = NULL


cdef class Sink:
    def __init__(self):
        raise TypeError("use Sink.image, Sink.delta, Sink.stream, Sink.packs or Sink.null")

    def __dealloc__(self):
        tz_sink_destroy(self.ptr)
        self.release()

    cdef void release(self):
        if self.writer is not None:
            self.writer.users -= 1
            self.writer = None

    @staticmethod
    def image(fd, size, *, fresh, buffered=False):
        cdef Sink self = Sink.__new__(Sink)
        cdef tz_file file
        cdef int result
        reopen(&file, fd, TZ_FILE_WRITE | (TZ_FILE_BUFFERED if buffered else 0), "open target")
        result = tz_sink_image(&self.ptr, &file, size, fresh)
        if result < 0:
            tz_file_close(&file)
            check(result, f"target of {file.size} bytes for {size}")
        return self

    @staticmethod
    def delta(fd, size, *, keep=False):
        cdef Sink self = Sink.__new__(Sink)
        cdef tz_file file
        cdef int result
        reopen(&file, fd, TZ_FILE_WRITE, "open target")
        result = tz_sink_delta(&self.ptr, &file, size, keep)
        if result < 0:
            tz_file_close(&file)
            check(result, f"target of {file.size} bytes for {size}")
        return self

    @staticmethod
    def stream(fd):
        cdef Sink self = Sink.__new__(Sink)
        check(tz_sink_stream(&self.ptr, fd), "open stream")
        return self

    @staticmethod
    def packs(PackWriter writer not None):
        cdef Sink self = Sink.__new__(Sink)
        if writer.ptr is NULL:
            raise ValueError("the pack writer is closed")
        check(tz_sink_packs(&self.ptr, writer.ptr), "packs")
        self.writer = writer
        writer.users += 1
        return self

    @staticmethod
    def null():
        cdef Sink self = Sink.__new__(Sink)
        check(tz_sink_null(&self.ptr), "null sink")
        return self
