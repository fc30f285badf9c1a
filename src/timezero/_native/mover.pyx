# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, binding=True
"""The data mover's C core: buffer space, sources, sinks, transfers.

A buffer space that movers still use is given back with the last of them, so closing in any order is safe.
"""

import errno

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset

from timezero._native.bufspace cimport (
    TZ_BUFSPACE_HUGE,
    TZ_BUFSPACE_LATER,
    TZ_BUFSPACE_LOCK,
    tz_bufspace_create,
    tz_bufspace_destroy,
    tz_bufspace_ready,
    tz_bufspace_stats,
    tz_bufspace_stats_get,
)
from timezero._native.io cimport TZ_IO_AUTO, TZ_IO_THREADS, TZ_IO_URING
from timezero._native.mover_c cimport *
from timezero._native.mover_ends cimport Sink as SinkType, Source as SourceType

from timezero._native.mover_ends import PackWriter, SessionView, Sink, Source

__all__ = [
    "CHUNK_DEFAULT", "INDEX_ENTRY_BYTES", "OUTCOMES", "BufferSpace", "Mover", "PackWriter", "SessionView", "Sink",
    "Source",
]

CHUNK_DEFAULT = int(TZ_CHUNK_DEFAULT)
INDEX_ENTRY_BYTES = int(sizeof(tz_index_entry))

OUTCOMES = {
    "none": int(TZ_OUTCOME_NONE), "stored": int(TZ_OUTCOME_STORED), "kept": int(TZ_OUTCOME_KEPT),
    "altered": int(TZ_OUTCOME_ALTERED), "unreadable": int(TZ_OUTCOME_UNREADABLE), "cut": int(TZ_OUTCOME_CUT),
    "no pack": int(TZ_OUTCOME_NO_PACK), "bad entry": int(TZ_OUTCOME_BAD_ENTRY),
}

_ENGINES = {"auto": TZ_IO_AUTO, "uring": TZ_IO_URING, "threads": TZ_IO_THREADS}
_SIDES = {TZ_SIDE_NONE: "", TZ_SIDE_SOURCE: "source", TZ_SIDE_SINK: "sink", TZ_SIDE_SESSION: "session"}


cdef class BufferSpace:
    def __cinit__(self, frame_size, frames, *, minimum=2, ready=None, huge=True, lock=False):
        cdef size_t size = frame_size
        cdef uint32_t count = frames, least = minimum, touched = frames if ready is None else ready
        cdef unsigned flags = (TZ_BUFSPACE_HUGE if huge else 0) | (TZ_BUFSPACE_LOCK if lock else 0) | TZ_BUFSPACE_LATER
        cdef int result
        with nogil:
            result = tz_bufspace_create(&self.ptr, size, count, least, flags)
        check(result, f"buffer space of {frames} frames of {frame_size} bytes")
        with nogil:
            tz_bufspace_ready(self.ptr, touched)
        self.frame_size = frame_size

    def __dealloc__(self):
        tz_bufspace_destroy(self.ptr)

    def stats(self):
        cdef tz_bufspace_stats s
        if self.ptr is NULL:
            raise ValueError("the buffer space is closed")
        tz_bufspace_stats_get(self.ptr, &s)
        return {
            "frame_size": s.frame_size, "frames": s.frames, "frames_taken": s.frames_taken, "frames_peak": s.frames_peak,
            "areas": s.areas, "areas_waiting": s.areas_waiting, "areas_total": s.areas_total,
            "huge": bool(s.huge), "locked": bool(s.locked),
        }

    def close(self):
        if self.users == 0:
            tz_bufspace_destroy(self.ptr)
            self.ptr = NULL


cdef class Mover:
    def __cinit__(
        self, BufferSpace space not None, *, engine="auto", workers=0, depth=0, rate=0, opportunistic=False,
        latency_ns=0, latency_percent=0, faults=0,
    ):
        cdef tz_mover_config config
        cdef int result
        if engine not in _ENGINES:
            raise ValueError(f"engine {engine!r} is not one of {', '.join(_ENGINES)}")
        if space.ptr is NULL:
            raise ValueError("the buffer space is closed")
        memset(&config, 0, sizeof(config))
        config.io = _ENGINES[engine]
        config.workers = workers
        config.depth = depth
        config.chunk_size = space.frame_size
        config.rate = rate
        config.opportunistic = opportunistic
        config.latency_ns = latency_ns
        config.latency_percent = latency_percent
        config.faults = faults
        with nogil:
            result = tz_mover_create(&self.ptr, space.ptr, &config)
        check(result, "data mover")
        self.chunk_size = config.chunk_size
        self.transfers = []
        self.space = space
        space.users += 1

    def __dealloc__(self):
        if self.ptr is not NULL:
            with nogil:
                tz_mover_destroy(self.ptr)
        if self.space is not None:
            self.space.users -= 1

    cdef int alive(self) except -1:
        if self.ptr is NULL:
            raise ValueError("the mover is closed")
        return 0

    cdef uint32_t number(self, transfer) except? 0xffffffff:
        self.alive()
        if not 0 <= transfer < len(self.transfers):
            raise IndexError(f"there is no transfer {transfer}")
        return transfer

    @property
    def engine(self):
        self.alive()
        return "uring" if tz_mover_engine(self.ptr) == TZ_IO_URING else "threads"

    def add(self, SourceType source not None, SinkType sink not None, *, index=False):
        cdef bytes entries = None
        cdef tz_index_entry *table = NULL
        cdef int number
        self.alive()
        if source.ptr is NULL or sink.ptr is NULL:
            raise ValueError("source or sink is used up")
        size = tz_source_size(source.ptr)
        if index:
            length = -(-size // self.chunk_size) * sizeof(tz_index_entry)
            entries = PyBytes_FromStringAndSize(NULL, length)
            table = <tz_index_entry *>PyBytes_AS_STRING(entries)
            memset(table, 0, length)
        number = check(tz_mover_add(self.ptr, source.ptr, sink.ptr, table), f"transfer of {size} bytes")
        # The index and the sink's pack writer live as long as the mover does.
        self.transfers.append((entries, sink))
        source.ptr = NULL
        sink.ptr = NULL
        return number

    def start(self):
        cdef int result
        self.alive()
        with nogil:
            result = tz_mover_start(self.ptr)
        check(result, "start the data mover")

    def wait(self, timeout=None):
        cdef int64_t ns = -1 if timeout is None else max(0, int(timeout * 1_000_000_000))
        cdef int ended
        self.alive()
        with nogil:
            ended = tz_mover_wait(self.ptr, ns)
        return ended == 1

    def cancel(self):
        self.alive()
        tz_mover_cancel(self.ptr)

    def rest(self, bint rests):
        self.alive()
        tz_mover_rest(self.ptr, rests)

    def speed(self):
        cdef tz_mover_speed speed
        self.alive()
        tz_mover_speed_get(self.ptr, &speed)
        return {
            "depth": speed.depth, "piece": speed.piece, "rate": speed.rate,
            "yields": bool(speed.yields), "rests": bool(speed.rests),
        }

    def bytes_done(self):
        self.alive()
        return tz_mover_bytes_done(self.ptr)

    def report(self, transfer):
        cdef tz_transfer_report r
        cdef uint32_t number = self.number(transfer)
        tz_mover_report_get(self.ptr, number, &r)
        cdef dict fields = r
        fields["done"] = bool(r.done)
        fields["touched"] = bool(r.touched)
        fields["side"] = _SIDES[r.side]
        return fields

    def index(self, transfer):
        cdef uint32_t number = self.number(transfer)
        entries, _ = self.transfers[number]
        if entries is None:
            raise ValueError("the transfer keeps no index")
        if not self.report(number)["done"]:
            raise BlockingIOError(errno.EBUSY, "the transfer has not ended")
        return entries

    def outcomes(self, transfer):
        cdef uint32_t number = self.number(transfer)
        cdef const uint8_t *found = tz_mover_outcomes(self.ptr, number)
        report = self.report(number)
        if found is NULL:
            return b""
        if not report["done"]:
            raise BlockingIOError(errno.EBUSY, "the transfer has not ended")
        return PyBytes_FromStringAndSize(<const char *>found, report["chunks"])

    def waiting(self):
        cdef uint32_t number = 0
        cdef tz_transfer_side side = TZ_SIDE_NONE
        self.alive()
        ns = tz_mover_waiting(self.ptr, &number, &side)
        return ns / 1e9, number, _SIDES[side]

    def waits_for(self, transfer, side):
        if side not in ("source", "sink"):
            raise ValueError(f"{side!r} is no side that waits")
        cdef tz_transfer_side wanted = TZ_SIDE_SINK if side == "sink" else TZ_SIDE_SOURCE
        return bool(tz_mover_waits_for(self.ptr, self.number(transfer), wanted))

    def sync(self, transfer):
        cdef uint32_t number = self.number(transfer)
        cdef int result
        with nogil:
            result = tz_mover_sync(self.ptr, number)
        check(result, "make the target durable")

    def close(self, timeout=None):
        cdef tz_mover *ptr = self.ptr
        if ptr is NULL:
            return True
        if timeout is not None:
            self.cancel()
            if not self.wait(timeout):
                Py_INCREF(self)  # for good: the kernel may still write to its frames, and its threads use it
                return False
        self.ptr = NULL
        with nogil:
            tz_mover_destroy(ptr)
        self.space.users -= 1
        self.space = None
        for _, sink in self.transfers:
            (<SinkType>sink).release()
        return True
