# SPDX-License-Identifier: Apache-2.0
# C declarations of csrc/include/tz/volume.h, gate.h, session_layout.h and faults.h.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from timezero._native.io cimport tz_file, tz_io


cdef extern from "tz/volume.h" nogil:
    ctypedef struct tz_volume:
        pass

    ctypedef enum tz_request_kind:
        TZ_REQUEST_READ
        TZ_REQUEST_WRITE
        TZ_REQUEST_FLUSH
        TZ_REQUEST_TRIM
        TZ_REQUEST_ZERO
        TZ_REQUEST_CACHE
        TZ_REQUEST_BLOCK_STATUS

    enum:
        TZ_REQUEST_FUA
        TZ_REQUEST_NO_HOLE
        TZ_REQUEST_FAST_ZERO
        TZ_REQUEST_ONE_EXTENT

    ctypedef struct tz_volume_extent:
        uint64_t length
        uint32_t flags

    ctypedef struct tz_request:
        tz_request_kind kind
        uint32_t flags
        uint64_t offset
        uint64_t length
        void *buffer
        uint32_t capacity
        void (*done)(tz_request *request, int64_t result) noexcept nogil
        void *user

    ctypedef struct tz_volume_config:
        const char *path
        bint read_only
        bint buffered
        bint lock
        uint32_t faults

    ctypedef struct tz_volume_stats:
        uint64_t reads
        uint64_t writes
        uint64_t flushes
        uint64_t trims
        uint64_t zeroes
        uint64_t read_bytes
        uint64_t written_bytes
        uint64_t errors
        uint64_t held
        uint64_t in_flight
        uint32_t sessions
        uint32_t reads_in_flight
        uint32_t updates_in_flight
        uint64_t usual_read_p50_ns
        uint64_t usual_read_p99_ns
        uint64_t usual_update_p50_ns
        uint64_t usual_update_p99_ns

    ctypedef struct tz_recent_writes:
        uint64_t ns
        uint64_t updates
        uint64_t bytes
        uint64_t blocks
        uint64_t newer_ns
        uint64_t newer_blocks

    int tz_volume_open(tz_volume **out, tz_io *io, const tz_volume_config *config)
    void tz_volume_close(tz_volume *volume)
    const tz_file *tz_volume_file(const tz_volume *volume)
    tz_io *tz_volume_io(const tz_volume *volume)
    bint tz_volume_is_idle(const tz_volume *volume)
    void tz_volume_submit(tz_volume *volume, tz_request *request)
    void tz_volume_stats_get(const tz_volume *volume, tz_volume_stats *out)
    void tz_volume_recent_writes_get(const tz_volume *volume, tz_recent_writes *out)


cdef extern from "tz/session_layout.h" nogil:
    enum tz_session_state:
        TZ_SESSION_PREPARED
        TZ_SESSION_ACTIVE
        TZ_SESSION_PUNCTURED
        TZ_SESSION_ENDED

    enum tz_puncture_reason:
        TZ_PUNCTURE_NONE
        TZ_PUNCTURE_CAP
        TZ_PUNCTURE_READ
        TZ_PUNCTURE_SIDEFILE
        TZ_PUNCTURE_PROTOCOL
        TZ_PUNCTURE_MOVER
        TZ_PUNCTURE_GATE
        TZ_PUNCTURE_STALLED
        TZ_PUNCTURE_ADMISSION


cdef extern from "tz/gate.h" nogil:
    ctypedef struct tz_session:
        pass

    ctypedef struct tz_suspension:
        pass

    ctypedef struct tz_session_config:
        uint64_t track_size
        uint64_t memory_bytes
        uint64_t file_bytes
        int file_fd
        bint domain
        uint32_t low_percent
        uint32_t high_percent
        uint32_t max_delay_us
        uint32_t volume_answer_ms
        uint32_t tier_answer_ms
        bint exempt
        uint32_t faults

    ctypedef struct tz_session_handles:
        int owned_fd
        int shared_fd
        int drain_fd
        int volume_fd
        int file_fd
        int domain_fd
        uint64_t owned_bytes
        uint64_t shared_bytes

    ctypedef struct tz_session_report:
        tz_session_state state
        tz_puncture_reason puncture
        uint64_t updates
        uint64_t intercepted
        uint64_t images
        uint64_t zero_images
        uint64_t file_images
        uint64_t self_freed
        uint64_t delayed
        uint64_t held_ns
        uint64_t held_max_ns
        uint32_t slots
        uint32_t used_slots
        uint32_t high_water
        uint32_t low_mark
        uint64_t track_size
        uint32_t reads_in_flight
        uint32_t updates_in_flight
        uint64_t reads
        uint64_t read_bytes
        uint64_t written_bytes
        uint64_t read_p50_ns
        uint64_t read_p99_ns
        uint64_t update_p50_ns
        uint64_t update_p99_ns
        uint64_t usual_read_p99_ns
        uint64_t usual_update_p99_ns

    ctypedef struct tz_suspension_times:
        uint64_t close_ns
        uint64_t drain_ns
        uint64_t install_ns
        uint64_t open_ns
        uint64_t total_ns

    int tz_session_prepare(tz_session **out, tz_volume *volume, const tz_session_config *config)
    int tz_session_check(const tz_volume *volume, const tz_session_config *config)
    void tz_session_handles_get(const tz_session *session, tz_session_handles *out)
    int tz_session_set_domain(tz_session *session)
    bint tz_session_lacks_domain(const tz_session *session)
    void tz_session_report_get(const tz_session *session, tz_session_report *out)
    int tz_session_end_within(
        tz_session *session, bint cancel, uint64_t timeout_ns, tz_session_report *out)
    void tz_session_give_way(tz_session *session)
    void tz_session_destroy(tz_session *session)

    int tz_suspension_create(tz_suspension **out, tz_session *const *sessions, uint32_t count)
    int tz_suspension_close(tz_suspension *suspension, uint64_t deadline_ns)
    int tz_suspension_install(tz_suspension *suspension)
    int tz_suspension_open(tz_suspension *suspension)
    void tz_suspension_abort(tz_suspension *suspension)
    int tz_suspension_run(tz_suspension *suspension, uint64_t deadline_ns)
    void tz_suspension_times_get(const tz_suspension *suspension, tz_suspension_times *out)
    void tz_suspension_destroy(tz_suspension *suspension)
