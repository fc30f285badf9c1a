# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""Bitmaps of atomic words, over memory of their own or anybody's. Signatures and contracts: bitmap.pyi."""

from cpython.buffer cimport PyBUF_CONTIG, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t, uintptr_t


cdef int check_bit(Bitmap self, uint64_t bit) except -1:
    if bit >= self.map.bits:
        raise IndexError(f"bit {bit} is past the end: the bitmap has {self.map.bits}")
    return 0


cdef uint64_t range_count(Bitmap self, uint64_t start, count) except? 0xffffffffffffffff:
    """How many bits the range (start, count) has; None: to the end."""
    cdef uint64_t bits
    if start > self.map.bits:
        raise IndexError(f"bit {start} is past the end: the bitmap has {self.map.bits}")
    if count is None:
        return self.map.bits - start
    bits = count
    if bits > self.map.bits - start:
        raise IndexError(f"{bits} bits from bit {start} go past the end: the bitmap has {self.map.bits}")
    return bits


cdef int check_batch(Bitmap self, const uint64_t[::1] bits) except -1:
    """All of them before any is changed."""
    cdef uint64_t highest = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(bits.shape[0]):
            highest = max(highest, bits[i])
    return check_bit(self, highest) if bits.shape[0] else 0


cdef answers_for(const uint64_t[::1] bits, out):
    """The array that answers go to, and its bytes."""
    if out is None:
        import numpy

        out = numpy.empty(bits.shape[0], dtype=numpy.bool_)
    answers = memoryview(out).cast("B")
    if answers.readonly:
        raise ValueError("out is read-only")
    if answers.nbytes != bits.shape[0]:
        raise ValueError(f"out has {answers.nbytes} bytes, {bits.shape[0]} are needed")
    return out, answers

cdef class Bitmap:
    def __cinit__(self, bits, memory=None):
        cdef uint64_t count = bits
        cdef size_t needed = tz_bitmap_bytes(count)
        if memory is None:
            memory = bytearray(needed)
        PyObject_GetBuffer(memory, &self.view, PyBUF_CONTIG)
        if <size_t>self.view.len < needed:
            raise ValueError(f"{bits} bits need {needed} bytes of memory, not {self.view.len}")
        if <uintptr_t>self.view.buf % sizeof(uint64_t):
            raise ValueError("memory must be aligned to 8 bytes")
        tz_bitmap_init(&self.map, self.view.buf, count)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def __len__(self):
        return self.map.bits

    def __repr__(self):
        return f"<Bitmap: {self.count()} of {self.map.bits} bits set>"

    @property
    def words(self):
        cdef size_t bytes = tz_bitmap_bytes(self.map.bits)
        return memoryview(<object>self.view.obj).cast("B")[:bytes].cast("Q")

    # ---- one bit ----

    def __getitem__(self, bit): # untyped: a C integer would take the sequence protocol's wrapped negative
        cdef uint64_t number = bit
        check_bit(self, number)
        return tz_bitmap_test(&self.map, number)

    def claim(self, uint64_t bit):
        check_bit(self, bit)
        return tz_bitmap_claim(&self.map, bit)

    def unclaim(self, uint64_t bit):
        check_bit(self, bit)
        return tz_bitmap_unclaim(&self.map, bit)

    # ---- ranges ----

    def set_range(self, uint64_t start=0, count=None):
        cdef uint64_t bits = range_count(self, start, count), changed
        with nogil:
            changed = tz_bitmap_set_range(&self.map, start, bits)
        return changed

    def clear_range(self, uint64_t start=0, count=None):
        cdef uint64_t bits = range_count(self, start, count), changed
        with nogil:
            changed = tz_bitmap_clear_range(&self.map, start, bits)
        return changed

    def any(self, uint64_t start=0, count=None):
        cdef uint64_t bits = range_count(self, start, count)
        cdef bint found
        with nogil:
            found = tz_bitmap_any(&self.map, start, bits)
        return found

    def all(self, uint64_t start=0, count=None):
        cdef uint64_t bits = range_count(self, start, count)
        cdef bint found
        with nogil:
            found = tz_bitmap_all(&self.map, start, bits)
        return found

    def count(self, uint64_t start=0, count=None):
        cdef uint64_t bits = range_count(self, start, count), found
        with nogil:
            found = tz_bitmap_count(&self.map, start, bits)
        return found

    def next_set(self, uint64_t start=0):
        cdef uint64_t found
        with nogil:
            found = tz_bitmap_next_set(&self.map, start)
        return None if found == TZ_BITMAP_NONE else found

    def next_clear(self, uint64_t start=0):
        cdef uint64_t found
        with nogil:
            found = tz_bitmap_next_clear(&self.map, start)
        return None if found == TZ_BITMAP_NONE else found

    # ---- batches ----

    def test_batch(self, const uint64_t[::1] bits not None, out=None):
        cdef uint8_t[::1] answers
        cdef Py_ssize_t i
        out, answers = answers_for(bits, out)
        check_batch(self, bits)
        with nogil:
            for i in range(bits.shape[0]):
                answers[i] = tz_bitmap_test(&self.map, bits[i])
        return out

    def claim_batch(self, const uint64_t[::1] bits not None, out=None):
        cdef uint8_t[::1] answers
        cdef Py_ssize_t i
        out, answers = answers_for(bits, out)
        check_batch(self, bits)
        with nogil:
            for i in range(bits.shape[0]):
                answers[i] = tz_bitmap_claim(&self.map, bits[i])
        return out

    def set_batch(self, const uint64_t[::1] bits not None):
        cdef uint64_t changed = 0
        cdef Py_ssize_t i
        check_batch(self, bits)
        with nogil:
            for i in range(bits.shape[0]):
                changed += tz_bitmap_claim(&self.map, bits[i])
        return changed

    def clear_batch(self, const uint64_t[::1] bits not None):
        cdef uint64_t changed = 0
        cdef Py_ssize_t i
        check_batch(self, bits)
        with nogil:
            for i in range(bits.shape[0]):
                changed += tz_bitmap_unclaim(&self.map, bits[i])
        return changed

    def positions(self, uint64_t start=0, count=None):
        cdef uint64_t end = start + range_count(self, start, count), bit
        cdef uint64_t[::1] places
        cdef Py_ssize_t found = 0, room
        import numpy

        # Others may set bits between counting and collecting: those are left out.
        out = numpy.empty(self.count(start, count), dtype=numpy.uint64)
        places = out
        room = places.shape[0]
        with nogil:
            bit = tz_bitmap_next_set(&self.map, start)
            while found < room and bit < end:
                places[found] = bit
                found += 1
                bit = tz_bitmap_next_set(&self.map, bit + 1)
        return out[:found]
