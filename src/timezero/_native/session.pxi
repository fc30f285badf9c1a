# SPDX-License-Identifier: Apache-2.0
# Part of subsystem.pyx: sessions, and the suspension of a group.


@cython.no_gc_clear
cdef class Session(Handle):
    cdef Volume _volume
    cdef tz_session *session
    cdef bint ending
    cdef dict final

    def __init__(self, Volume volume not None, *, uint64_t track_size, uint64_t memory_bytes, int file_fd=-1,
                 uint64_t file_bytes=0, bint domain=False, unsigned low_percent=0, unsigned high_percent=0,
                 unsigned max_delay_us=0, bint exempt=False, unsigned volume_answer_ms=0, unsigned tier_answer_ms=0,
                 unsigned faults=0):
        if self.session is not NULL:
            raise RuntimeError("a Session is prepared once")
        cdef tz_session_config config = tz_session_config(
            track_size=track_size, memory_bytes=memory_bytes, file_bytes=file_bytes, file_fd=file_fd, domain=domain,
            low_percent=low_percent, high_percent=high_percent, max_delay_us=max_delay_us,
            exempt=exempt, volume_answer_ms=volume_answer_ms, tier_answer_ms=tier_answer_ms, faults=faults)
        cdef int result
        volume.enter()
        try:
            with nogil:
                result = tz_session_prepare(&self.session, volume.volume, &config)
            check(result)
            self._volume = volume
            volume.dependents += 1
        finally:
            volume.leave()

    def __dealloc__(self):
        if self.session is not NULL and not self.closed:
            # What a disk still owes keeps the session's memory: better a leak than memory freed under the kernel.
            self._free(<uint64_t>(_CLOSE_TIMEOUT * 1e9))

    @staticmethod
    def check_sizes(Volume volume not None, *, uint64_t track_size, uint64_t memory_bytes, uint64_t file_bytes=0,
              bint domain=False):
        cdef tz_session_config config = tz_session_config(
            track_size=track_size, memory_bytes=memory_bytes, file_bytes=file_bytes, file_fd=-1, domain=domain,
            low_percent=0, high_percent=0, max_delay_us=0, exempt=False, faults=0)
        volume.enter()
        try:
            check(tz_session_check(volume.volume, &config))
        finally:
            volume.leave()

    @property
    def volume(self):
        return self._volume

    def handles(self):
        cdef tz_session_handles handles
        self.enter()
        try:
            tz_session_handles_get(self.session, &handles)
            return handles
        finally:
            self.leave()

    @property
    def lacks_domain(self):
        self.enter()
        try:
            return tz_session_lacks_domain(self.session)
        finally:
            self.leave()

    def set_domain(self):
        cdef int result
        self.enter()
        try:
            with nogil:
                result = tz_session_set_domain(self.session)
            check(result)
        finally:
            self.leave()

    def report(self):
        cdef tz_session_report report
        self.enter()
        try:
            tz_session_report_get(self.session, &report)
            return report_dict(&report)
        finally:
            self.leave()

    def give_way(self):
        self.enter()
        try:
            with nogil:
                tz_session_give_way(self.session)
        finally:
            self.leave()

    def end(self, *, bint cancel=False, timeout=None):
        cdef tz_session_report report
        cdef uint64_t timeout_ns = nanoseconds(timeout)
        if self.final is not None:
            return dict(self.final)
        if self.dependents or self.ending:
            raise RuntimeError("Session takes part in a suspension" if self.dependents else "Session is being ended")
        self.enter()
        self.ending = True
        try:
            with nogil:
                tz_session_end_within(self.session, cancel, timeout_ns, &report)
            self.final = report_dict(&report)
            return dict(self.final)
        finally:
            self.ending = False
            self.leave()

    def close(self, timeout=None):
        cdef uint64_t timeout_ns = nanoseconds(timeout)
        if self.shut("suspension") and not self._free(timeout_ns):
            self.closed = False
        return bool(self.closed)

    cdef bint _free(self, uint64_t timeout_ns) noexcept:
        cdef int result
        with nogil:
            result = tz_session_end_within(self.session, True, timeout_ns, NULL)
            if result == 0:
                tz_session_destroy(self.session)
        if result < 0:
            return False
        self.session = NULL
        self._volume.dependents -= 1
        return True


cdef uint64_t nanoseconds(timeout) except? 0:
    return <uint64_t>-1 if timeout is None else <uint64_t>(max(timeout, 0.0) * 1e9)


cdef dict report_dict(const tz_session_report *report):
    fields = dict(report[0])
    fields["state"] = STATES[report.state]
    fields["puncture"] = PUNCTURES[report.puncture]
    return fields


@cython.no_gc_clear
cdef class Suspension:
    cdef list sessions  # which cannot close while their gates are closed
    cdef tz_suspension *suspension
    cdef bint holding

    def __init__(self, sessions):
        if self.suspension is not NULL:
            raise RuntimeError("a Suspension is made once")
        self.sessions = list(sessions)
        cdef tz_session **pointers = <tz_session **>malloc(max(len(self.sessions), 1) * sizeof(tz_session *))
        if pointers is NULL:
            raise MemoryError
        try:
            self._hold()
            for place, session in enumerate(self.sessions):
                pointers[place] = (<Session>session).session
            check(tz_suspension_create(&self.suspension, <tz_session *const *>pointers, len(self.sessions)))
        finally:
            self._release()
            free(pointers)

    def __dealloc__(self):
        if self.suspension is not NULL:
            with nogil:
                tz_suspension_destroy(self.suspension)
            self._release()

    def run(self, uint64_t deadline_us):
        cdef int result
        self._hold()
        try:
            with nogil:
                result = tz_suspension_run(self.suspension, deadline_us * 1000)
            check(result)
        finally:
            self._release()
        return self._times()

    def close_gates(self, uint64_t deadline_us):
        cdef int result
        self._hold()
        with nogil:
            result = tz_suspension_close(self.suspension, deadline_us * 1000)
        self._settle(result, False)

    def install(self):
        cdef int result
        self._holds()
        with nogil:
            result = tz_suspension_install(self.suspension)
        self._settle(result, False)

    def open_gates(self):
        cdef int result
        self._holds()
        with nogil:
            result = tz_suspension_open(self.suspension)
        self._settle(result, True)
        return self._times()

    def abort(self):
        if self.holding:
            with nogil:
                tz_suspension_abort(self.suspension)
            self._release()

    cdef int _hold(self) except -1:
        """Keep the sessions from being closed or ended."""
        if self.holding:
            raise RuntimeError("the gates are closed already")
        for session in self.sessions:
            if (<Session?>session).closed or (<Session>session).ending:
                raise ValueError("Session is closed")
        for session in self.sessions:
            (<Session>session).dependents += 1
        self.holding = True
        return 0

    cdef int _holds(self) except -1:
        if not self.holding:
            raise RuntimeError("the gates are not closed")
        return 0

    cdef void _release(self) noexcept:
        if self.holding:
            self.holding = False
            for session in self.sessions:
                (<Session>session).dependents -= 1

    cdef int _settle(self, int result, bint last) except -1:
        """A step that failed has opened everything."""
        if result < 0 or last:
            self._release()
        return check(result)

    cdef dict _times(self):
        cdef tz_suspension_times times
        tz_suspension_times_get(self.suspension, &times)
        return times
