# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
"""The storage subsystem's C core: reactors, served volumes, sessions, the suspension of a group.

Lifetimes   session and suspension hold their volume, a volume its reactor; whatever is still used by something
            above refuses to close. Dropping the last reference closes in that order.
Threads     any method from any thread; every call that may block releases the GIL; close waits for calls under way.
"""

import errno
import os
import time

cimport cython
from libc.errno cimport EBUSY
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport usleep

from timezero._native.gate cimport *
from timezero._native.io cimport TZ_IO_AUTO, TZ_IO_THREADS, TZ_IO_URING, tz_file, tz_io_config, tz_io_engine
from timezero._native.nbd cimport *

cdef dict ENGINES = {"auto": TZ_IO_AUTO, "uring": TZ_IO_URING, "threads": TZ_IO_THREADS}
cdef dict STATES = {
    TZ_SESSION_PREPARED: "prepared", TZ_SESSION_ACTIVE: "active",
    TZ_SESSION_PUNCTURED: "punctured", TZ_SESSION_ENDED: "ended",
}
cdef dict PUNCTURES = {
    TZ_PUNCTURE_NONE: "none", TZ_PUNCTURE_CAP: "cap", TZ_PUNCTURE_READ: "read", TZ_PUNCTURE_SIDEFILE: "sidefile",
    TZ_PUNCTURE_PROTOCOL: "protocol", TZ_PUNCTURE_MOVER: "mover", TZ_PUNCTURE_GATE: "gate",
    TZ_PUNCTURE_STALLED: "stalled", TZ_PUNCTURE_ADMISSION: "admission",
}

_CLOSE_TIMEOUT = 30.0  # seconds for issued requests of a volume to complete


cdef int check(int result, object path=None) except -1:
    """The one translator of -errno: OSError and its subclasses; BlockingIOError for EBUSY as well."""
    if result >= 0:
        return result
    code = -result
    kind = BlockingIOError if code == errno.EBUSY else OSError
    if path is None:
        raise kind(code, os.strerror(code))
    raise kind(code, os.strerror(code), path)


cdef class Handle:
    """What Reactor, Volume and Session have in common: calls under way, dependents, being closed."""

    cdef int calls       # under way
    cdef int dependents  # open handles above this one
    cdef bint closed

    cdef int enter(self) except -1:
        if self.closed:
            raise ValueError(f"{type(self).__name__} is closed")
        self.calls += 1
        return 0

    cdef void leave(self) noexcept:
        self.calls -= 1

    cdef int shut(self, str dependents) except -1:
        """Let no further call in and wait for those under way; 0 when it was closed before."""
        if self.closed:
            return 0
        if self.dependents:
            raise RuntimeError(f"{type(self).__name__} is in use by {self.dependents} {dependents}")
        self.closed = True
        while self.calls:
            with nogil:
                usleep(100)
        return 1


@cython.no_gc_clear
cdef class Reactor(Handle):
    cdef tz_reactor *reactor

    def __init__(self, engine="auto", *, int poll_us=0):
        cdef tz_io_config config = tz_io_config(kind=TZ_IO_AUTO, depth=0, threads=0, poll_us=0)
        if self.reactor is not NULL:
            raise RuntimeError("a Reactor is made once")
        if engine not in ENGINES:
            raise ValueError(f"engine {engine!r} is none of {', '.join(ENGINES)}")
        config.kind = ENGINES[engine]
        config.poll_us = poll_us
        cdef int result
        with nogil:
            result = tz_reactor_create(&self.reactor, &config)
        check(result)

    def __dealloc__(self):
        if self.reactor is not NULL:
            with nogil:
                tz_reactor_destroy(self.reactor)

    @property
    def engine(self):
        self.enter()
        try:
            return "uring" if tz_io_engine(tz_reactor_io(self.reactor)) == TZ_IO_URING else "threads"
        finally:
            self.leave()

    def close(self):
        if self.shut("volumes"):
            with nogil:
                tz_reactor_destroy(self.reactor)
            self.reactor = NULL


cdef struct stats_call:
    tz_volume *volume
    tz_volume_stats stats


cdef int stats_on_thread(void *arg) noexcept nogil:
    cdef stats_call *call = <stats_call *>arg
    tz_volume_stats_get(call.volume, &call.stats)
    return 0


cdef struct recent_call:
    tz_volume *volume
    tz_recent_writes recent


cdef int recent_on_thread(void *arg) noexcept nogil:
    cdef recent_call *call = <recent_call *>arg
    tz_volume_recent_writes_get(call.volume, &call.recent)
    return 0


cdef int close_on_thread(void *arg) noexcept nogil:
    cdef tz_volume *volume = <tz_volume *>arg
    if not tz_volume_is_idle(volume):
        return -EBUSY
    tz_volume_close(volume)
    return 0


@cython.no_gc_clear
cdef class Volume(Handle):
    cdef Reactor reactor
    cdef tz_volume *volume
    cdef object _path
    cdef bint _read_only

    def __init__(self, Reactor reactor not None, path, *, bint read_only=False, bint buffered=False, bint lock=True,
                 unsigned faults=0):
        if self.volume is not NULL:
            raise RuntimeError("a Volume is opened once")
        self._path = os.fsdecode(path)
        self._read_only = read_only
        encoded = os.fsencode(path)
        cdef tz_volume_config config = tz_volume_config(
            path=encoded, read_only=read_only, buffered=buffered, lock=lock, faults=faults)
        cdef int result
        reactor.enter()
        try:
            with nogil:
                result = tz_volume_open(&self.volume, tz_reactor_io(reactor.reactor), &config)
            check(result, self._path)
            self.reactor = reactor
            reactor.dependents += 1
        finally:
            reactor.leave()

    def __dealloc__(self):
        if self.volume is not NULL and not self.closed:
            # What does not complete keeps volume and reactor alive: better a leak than memory freed under the kernel.
            self._end(_CLOSE_TIMEOUT)

    @property
    def path(self):
        return self._path

    @property
    def read_only(self):
        return self._read_only

    @property
    def size(self):
        return self._file().size

    @property
    def direct(self):
        return bool(self._file().direct)

    @property
    def block_size(self):
        return max(self._file().block_size, self._file().offset_align)

    @property
    def identity(self):
        return self._file().device, self._file().inode

    cdef const tz_file *_file(self) except NULL:
        if self.closed:
            raise ValueError("Volume is closed")
        return tz_volume_file(self.volume)

    def transmission_flags(self):
        self.enter()
        try:
            return tz_nbd_transmission_flags(self.volume, self._read_only)
        finally:
            self.leave()

    def adopt(self, int fd, *, bint structured, base_allocation_id=None, unsigned max_requests=0, uint64_t max_bytes=0,
              unsigned silent_ms=0):
        cdef tz_nbd_config config = tz_nbd_config(
            flags=TZ_NBD_READ_ONLY if self._read_only else 0, context_id=0,
            max_requests=max_requests, max_bytes=max_bytes, silent_ms=silent_ms, patience_ns=0)
        cdef int result
        if structured:
            config.flags |= TZ_NBD_STRUCTURED
        if base_allocation_id is not None:
            config.flags |= TZ_NBD_BASE_ALLOCATION
            config.context_id = base_allocation_id
        self.enter()
        try:
            with nogil:
                result = tz_nbd_adopt(self.reactor.reactor, self.volume, fd, &config)
            check(result)
        finally:
            self.leave()

    def disconnect_all(self, double timeout):
        cdef uint64_t timeout_ns = <uint64_t>(max(timeout, 0.0) * 1e9)
        cdef int result
        self.enter()
        try:
            with nogil:
                result = tz_nbd_close_all(self.reactor.reactor, self.volume, timeout_ns)
            if result == -errno.ETIMEDOUT:
                return False
            check(result)
            return True
        finally:
            self.leave()

    def stats(self):
        cdef stats_call call
        cdef tz_nbd_stats nbd
        self.enter()
        try:
            call.volume = self.volume
            with nogil:
                tz_reactor_call(self.reactor.reactor, stats_on_thread, &call)
                tz_nbd_stats_get(self.reactor.reactor, self.volume, &nbd)
            return {**call.stats, **nbd}
        finally:
            self.leave()

    def recent_writes(self):
        cdef recent_call call
        self.enter()
        try:
            call.volume = self.volume
            with nogil:
                tz_reactor_call(self.reactor.reactor, recent_on_thread, &call)
            return call.recent
        finally:
            self.leave()

    def close(self):
        if self.shut("sessions"):
            try:
                check(self._end(_CLOSE_TIMEOUT), self._path)
            except BaseException:
                self.closed = False
                raise

    cdef int _end(self, double timeout):
        """Disconnect, wait until nothing is under way, close on the volume's thread: 0, -ETIMEDOUT or -EBUSY."""
        cdef uint64_t timeout_ns = <uint64_t>(timeout * 1e9)
        cdef double deadline = time.monotonic() + timeout
        cdef int result
        with nogil:
            result = tz_nbd_close_all(self.reactor.reactor, self.volume, timeout_ns)
        while result == 0:
            with nogil:
                result = tz_reactor_call(self.reactor.reactor, close_on_thread, self.volume)
            if result == 0:
                self.volume = NULL
                self.reactor.dependents -= 1
                return 0
            if time.monotonic() > deadline:
                break
            with nogil:
                usleep(1000)
            result = 0
        return result


include "session.pxi"
