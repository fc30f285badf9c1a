# SPDX-License-Identifier: Apache-2.0
"""The data mover's C interface, as csrc/include/tz/mover.h declares it, and the translator of its errors."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from timezero._native.bufspace cimport tz_bufspace
from timezero._native.io cimport tz_file, tz_io_kind

cdef extern from "tz/common.h" nogil:
    const uint64_t TZ_CHUNK_DEFAULT

cdef extern from "tz/mover.h" nogil:
    ctypedef struct tz_mover:
        pass
    ctypedef struct tz_source:
        pass
    ctypedef struct tz_sink:
        pass
    ctypedef struct tz_session_view:
        pass
    ctypedef struct tz_pack_writer:
        pass
    ctypedef struct tz_index_entry:
        pass
    ctypedef struct tz_session_descriptors:
        int owned_fd
        int shared_fd
        int drain_fd
        int volume_fd
        int file_fd
    ctypedef struct tz_mover_config:
        tz_io_kind io
        uint32_t workers
        uint32_t depth
        uint32_t chunk_size
        uint64_t rate
        bint opportunistic
        uint32_t latency_percent
        uint64_t latency_ns
        uint32_t faults
    enum tz_outcome:
        TZ_OUTCOME_NONE
        TZ_OUTCOME_STORED
        TZ_OUTCOME_KEPT
        TZ_OUTCOME_ALTERED
        TZ_OUTCOME_UNREADABLE
        TZ_OUTCOME_CUT
        TZ_OUTCOME_NO_PACK
        TZ_OUTCOME_BAD_ENTRY
    enum tz_transfer_side:
        TZ_SIDE_NONE
        TZ_SIDE_SOURCE
        TZ_SIDE_SINK
        TZ_SIDE_SESSION
    ctypedef struct tz_transfer_report:
        bint done
        bint touched
        int error
        tz_transfer_side side
        uint64_t error_offset
        uint64_t size
        uint64_t chunks
        uint64_t bytes_done
        uint64_t bytes_read
        uint64_t bytes_written
        uint64_t chunks_zero
        uint64_t chunks_direct
        uint64_t chunks_sidefile
        uint64_t chunks_mixed
        uint64_t tracks_from_sidefile
        uint64_t chunks_ahead
        uint64_t chunks_kept
        uint64_t bytes_kept
        uint64_t chunks_damaged
        uint32_t pressure
        uint64_t started_ns
        uint64_t ended_ns

    int tz_source_file(tz_source **out, const tz_file *file, uint64_t size)
    int tz_session_view_open(tz_session_view **out, const tz_session_descriptors *fds)
    uint64_t tz_session_view_size(const tz_session_view *view)
    uint64_t tz_session_view_track_size(const tz_session_view *view)
    void tz_session_view_release(tz_session_view *view)
    int tz_source_session(tz_source **out, tz_session_view *view)
    int tz_source_extents(
        tz_source **out, tz_session_view *view, uint64_t size, const uint64_t *logical, const uint64_t *physical,
        const uint64_t *length, uint64_t count)
    int tz_source_index(
        tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size, uint32_t chunk_size,
        const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs)
    int tz_source_salvage(
        tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size, uint32_t chunk_size,
        const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs)
    bint tz_source_direct(const tz_source *source)
    uint64_t tz_source_size(const tz_source *source)
    void tz_source_destroy(tz_source *source)
    int tz_sink_image(tz_sink **out, const tz_file *file, uint64_t size, bint fresh)
    int tz_sink_delta(tz_sink **out, const tz_file *file, uint64_t size, bint keep)
    int tz_sink_stream(tz_sink **out, int fd)
    int tz_pack_writer_create(tz_pack_writer **out, int dir_fd, const char *prefix, uint64_t max_bytes)
    int tz_pack_writer_finish(tz_pack_writer *writer, uint32_t *packs, uint64_t *bytes)
    uint64_t tz_pack_writer_pack_bytes(const tz_pack_writer *writer, uint32_t pack)
    void tz_pack_writer_destroy(tz_pack_writer *writer)
    int tz_sink_packs(tz_sink **out, tz_pack_writer *writer)
    int tz_sink_null(tz_sink **out)
    void tz_sink_destroy(tz_sink *sink)
    int tz_mover_create(tz_mover **out, tz_bufspace *space, const tz_mover_config *config)
    tz_io_kind tz_mover_engine(const tz_mover *mover)
    int tz_mover_add(tz_mover *mover, tz_source *source, tz_sink *sink, tz_index_entry *index)
    ctypedef struct tz_mover_speed:
        uint32_t depth
        uint32_t piece
        uint64_t rate
        bint yields
        bint rests

    int tz_mover_start(tz_mover *mover)
    void tz_mover_rest(tz_mover *mover, bint rests)
    void tz_mover_speed_get(tz_mover *mover, tz_mover_speed *out)
    int tz_mover_wait(tz_mover *mover, int64_t timeout_ns)
    void tz_mover_cancel(tz_mover *mover)
    void tz_mover_report_get(tz_mover *mover, uint32_t transfer, tz_transfer_report *out)
    uint64_t tz_mover_bytes_done(tz_mover *mover)
    const uint8_t *tz_mover_outcomes(const tz_mover *mover, uint32_t transfer)
    uint64_t tz_mover_waiting(tz_mover *mover, uint32_t *transfer, tz_transfer_side *side)
    bint tz_mover_waits_for(tz_mover *mover, uint32_t transfer, tz_transfer_side side)
    int tz_mover_sync(tz_mover *mover, uint32_t transfer)
    void tz_mover_destroy(tz_mover *mover)


cdef inline int check(int result, str doing) except -1:
    """The one translator of -errno: an OSError that says what was being done."""
    if result < 0:
        import os

        raise OSError(-result, f"{doing}: {os.strerror(-result)}")
    return result
