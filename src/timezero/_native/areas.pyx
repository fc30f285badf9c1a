# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, embedsignature=True
"""Areas of a buffer space, one step at a time: for models and planners. Signatures and contracts: areas.pyi."""

from libc.errno cimport EINVAL
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uintptr_t

from timezero._native.bufspace cimport (
    TZ_BUFSPACE_HUGE, TZ_BUFSPACE_LOCK, tz_area, tz_area_give, tz_area_granted, tz_area_quota, tz_area_release,
    tz_area_request, tz_area_take, tz_bufspace, tz_bufspace_base, tz_bufspace_create, tz_bufspace_destroy,
    tz_bufspace_stats, tz_bufspace_stats_get,
)


cdef class AreaSpace:
    cdef tz_bufspace *space # never NULL
    cdef size_t frame_size

    def __cinit__(self, size_t frame_size, uint32_t frames, *, uint32_t minimum=2, bint huge=False, bint lock=False):
        cdef unsigned flags = (TZ_BUFSPACE_HUGE if huge else 0) | (TZ_BUFSPACE_LOCK if lock else 0)
        cdef int error
        with nogil:
            error = tz_bufspace_create(&self.space, frame_size, frames, minimum, flags)
        if error == -EINVAL:
            raise ValueError(
                f"frames of {frame_size} bytes, {frames} in all, {minimum} an area at least: the size must be a "
                "multiple of 4096, the minimum between 1 and the number of frames"
            )
        if error < 0:
            raise MemoryError(f"no memory for {frames} frames of {frame_size} bytes")
        self.frame_size = frame_size

    def __dealloc__(self):
        # Areas hold a reference to their space, so all of them are gone.
        tz_bufspace_destroy(self.space)

    def stats(self):
        cdef tz_bufspace_stats stats
        tz_bufspace_stats_get(self.space, &stats)
        return {
            "frame_size": stats.frame_size,
            "frames": stats.frames,
            "frames_taken": stats.frames_taken,
            "frames_peak": stats.frames_peak,
            "areas": stats.areas,
            "areas_waiting": stats.areas_waiting,
            "areas_total": stats.areas_total,
            "huge": bool(stats.huge),
            "locked": bool(stats.locked),
        }

    def request(self, uint32_t useful):
        return Area(self, useful)


cdef void count_notice(void *user) noexcept nogil:
    (<unsigned *>user)[0] += 1


cdef class Area:
    cdef AreaSpace home
    cdef tz_area *area # NULL: released
    cdef unsigned notices
    cdef set held

    def __cinit__(self, AreaSpace space not None, uint32_t useful):
        cdef int error
        self.home = space
        self.held = set()
        error = tz_area_request(&self.area, space.space, useful, count_notice, &self.notices)
        if error == -EINVAL:
            raise ValueError("an area must be able to use 1 frame at least")
        if error < 0:
            raise MemoryError("no memory for an area")

    def __dealloc__(self):
        if self.area != NULL:
            for frame in self.held:
                tz_area_give(self.area, self.address(frame))
            tz_area_release(self.area)

    cdef void *address(self, size_t frame):
        cdef size_t bytes
        return <char *>tz_bufspace_base(self.home.space, &bytes) + frame * self.home.frame_size

    cdef int check_live(self) except -1:
        if self.area == NULL:
            raise ValueError("the area was released")
        return 0

    @property
    def granted(self):
        self.check_live()
        return tz_area_granted(self.area)

    @property
    def quota(self):
        self.check_live()
        return tz_area_quota(self.area)

    @property
    def told(self):
        return self.notices

    def take(self):
        cdef void *frame
        cdef size_t number
        self.check_live()
        frame = tz_area_take(self.area)
        if frame == NULL:
            return None
        number = (<uintptr_t>frame - <uintptr_t>self.address(0)) // self.home.frame_size
        self.held.add(number)
        return number

    def give(self, size_t frame):
        self.check_live()
        if frame not in self.held:
            raise ValueError(f"the area does not hold frame {frame}")
        self.held.remove(frame)
        tz_area_give(self.area, self.address(frame))

    def release(self):
        self.check_live()
        if self.held:
            raise ValueError(f"the area still holds {len(self.held)} frames")
        tz_area_release(self.area)
        self.area = NULL
