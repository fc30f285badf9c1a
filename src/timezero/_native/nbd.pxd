# SPDX-License-Identifier: Apache-2.0
# C declarations of csrc/include/tz/reactor.h and nbd.h: what Cython needs of them, nothing of its own.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from timezero._native.gate cimport tz_volume
from timezero._native.io cimport tz_io, tz_io_config


cdef extern from "tz/reactor.h" nogil:
    ctypedef struct tz_reactor:
        pass

    int tz_reactor_create(tz_reactor **out, const tz_io_config *config)
    void tz_reactor_destroy(tz_reactor *reactor)
    tz_io *tz_reactor_io(const tz_reactor *reactor)
    int tz_reactor_call(tz_reactor *reactor, int (*fn)(void *arg) noexcept nogil, void *arg)


cdef extern from "tz/nbd.h" nogil:
    const uint64_t TZ_NBD_MAX_PAYLOAD

    enum:
        TZ_NBD_STRUCTURED
        TZ_NBD_BASE_ALLOCATION
        TZ_NBD_READ_ONLY

    ctypedef struct tz_nbd_config:
        unsigned flags
        uint32_t context_id
        uint32_t max_requests
        uint32_t silent_ms
        uint64_t max_bytes
        uint64_t patience_ns

    ctypedef struct tz_nbd_stats:
        uint64_t connections
        uint64_t requests
        uint64_t protocol_errors

    uint16_t tz_nbd_transmission_flags(const tz_volume *volume, bint read_only)
    int tz_nbd_adopt(tz_reactor *reactor, tz_volume *volume, int fd, const tz_nbd_config *config)
    int tz_nbd_close_all(tz_reactor *reactor, tz_volume *volume, uint64_t timeout_ns)
    void tz_nbd_stats_get(tz_reactor *reactor, const tz_volume *volume, tz_nbd_stats *out)
