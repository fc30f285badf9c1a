# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The extent map: a dataset's concordance. Signatures and contracts: extents.pyi."""

from collections import namedtuple

from libc.errno cimport EINVAL, EOVERFLOW
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from timezero._native.bitmap cimport Bitmap

ZERO = TZ_EXTENT_ZERO
NONE = TZ_EXTENT_NONE

Extent = namedtuple("Extent", ["logical", "physical", "length", "kind"])
Extent.__module__ = __name__


cdef extent_of(const tz_extent *extent, bint mapped):
    physical = None if extent.physical == TZ_EXTENT_NONE else extent.physical
    kind = "hole" if not mapped else "zero" if extent.flags & TZ_EXTENT_ZERO else "data"
    return Extent(extent.logical, physical, extent.length, kind)


cdef uint64_t[::1] output_for(const uint64_t[::1] addresses, out):
    cdef uint64_t[::1] places = out
    if places.shape[0] != addresses.shape[0]:
        raise ValueError(f"out has {places.shape[0]} places for {addresses.shape[0]} addresses")
    return places


cdef new_output(const uint64_t[::1] addresses):
    import numpy

    return numpy.empty(addresses.shape[0], dtype=numpy.uint64)


cdef int fail(int error, const uint64_t[::1] logical, const uint64_t[::1] length, const uint32_t[::1] flags) except -1:
    """Says what is wrong with the columns: the core says only that something is."""
    cdef Py_ssize_t i
    if error == -EOVERFLOW:
        raise OverflowError(f"an extent ends past the last address, {TZ_EXTENT_END}")
    if error != -EINVAL:
        raise MemoryError("no memory for the extent map")
    for i in range(logical.shape[0]):
        if length[i] == 0:
            raise ValueError(f"extent {i} at logical address {logical[i]} has length 0")
        if flags is not None and flags[i] & ~<uint32_t>TZ_EXTENT_ZERO:
            raise ValueError(f"extent {i} at logical address {logical[i]} has unknown flags {flags[i]:#x}")
    raise ValueError("two extents overlap in their logical addresses")


cdef int check_reverse(ExtentMap self) except -1:
    if not tz_extents_has_reverse(self.map):
        raise ValueError("this map was built without reverse=True")
    return 0


cdef class ExtentMap:
    def __cinit__(
        self,
        const uint64_t[::1] logical not None,
        const uint64_t[::1] physical not None,
        const uint64_t[::1] length not None,
        const uint32_t[::1] flags=None,
        *,
        bint reverse=False,
    ):
        cdef uint64_t count = logical.shape[0]
        cdef unsigned options = TZ_EXTENTS_REVERSE if reverse else 0
        cdef const uint32_t *flag_column = NULL
        cdef int error
        if <uint64_t>physical.shape[0] != count or <uint64_t>length.shape[0] != count:
            raise ValueError("logical, physical and length must have one length")
        if flags is not None:
            if <uint64_t>flags.shape[0] != count:
                raise ValueError("flags must be as long as the other columns")
            flag_column = &flags[0]
        with nogil:
            error = tz_extents_build(&self.map, &logical[0], &physical[0], &length[0], flag_column, count, options)
        if error < 0:
            fail(error, logical, length, flags)

    def __dealloc__(self):
        tz_extents_destroy(self.map)

    def __len__(self):
        return tz_extents_count(self.map)

    def __repr__(self):
        return f"<ExtentMap: {len(self)} extents, {self.data_bytes} bytes of data>"

    @property
    def data_bytes(self):
        return tz_extents_bytes(self.map)

    @property
    def has_reverse(self):
        return tz_extents_has_reverse(self.map)

    def __getitem__(self, at): # untyped: a C integer would take the sequence protocol's wrapped negative
        cdef uint64_t number = at
        cdef tz_extent extent
        if number >= tz_extents_count(self.map):
            raise IndexError(f"there are {len(self)} extents, no extent {number}")
        extent = tz_extents_at(self.map, number)
        return extent_of(&extent, True)

    def lookup(self, uint64_t logical):
        cdef tz_extent run
        cdef bint mapped = tz_extents_lookup(self.map, logical, &run)
        return extent_of(&run, mapped)

    def lookup_batch(self, const uint64_t[::1] logical not None, out=None):
        cdef uint64_t[::1] places
        if out is None:
            out = new_output(logical)
        places = output_for(logical, out)
        with nogil:
            tz_extents_lookup_batch(self.map, &logical[0], &places[0], logical.shape[0])
        return out

    def reverse(self, uint64_t physical):
        cdef uint64_t count, i
        cdef tz_extent *runs
        check_reverse(self)
        count = tz_extents_reverse(self.map, physical, NULL, 0)
        runs = <tz_extent *>malloc(max(count, 1) * sizeof(tz_extent))
        if runs == NULL:
            raise MemoryError
        try:
            tz_extents_reverse(self.map, physical, runs, count)
            return sorted([extent_of(&runs[i], True) for i in range(count)])
        finally:
            free(runs)

    def reverse_batch(self, const uint64_t[::1] physical not None, out=None):
        cdef uint64_t[::1] places
        check_reverse(self)
        if out is None:
            out = new_output(physical)
        places = output_for(physical, out)
        with nogil:
            tz_extents_reverse_batch(self.map, &physical[0], &places[0], physical.shape[0])
        return out

    def tracks(self, uint64_t track_size, Bitmap tracks not None):
        cdef int error
        if track_size == 0 or track_size & (track_size - 1):
            raise ValueError(f"the track size must be a power of two, not {track_size}")
        with nogil:
            error = tz_extents_tracks(self.map, track_size, &tracks.map)
        if error < 0:
            raise IndexError(f"an extent lies past the last of {len(tracks)} tracks of {track_size} bytes")
