# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3, embedsignature=True
"""Digests of chunks. Signatures and contracts: digest.pyi."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t

DIGEST_BYTES = TZ_DIGEST_BYTES


cdef bytes digest_bytes(const tz_digest *digest):
    return (<const char *>digest.bytes)[:TZ_DIGEST_BYTES]


def digest(data):
    cdef tz_digest found
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        tz_digest_plain(&found, view.buf, view.len)
    PyBuffer_Release(&view)
    return digest_bytes(&found)


def digest_chunk(data):
    cdef tz_digest found
    cdef Py_buffer view
    cdef bint zero
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        zero = tz_digest_chunk(&found, view.buf, view.len)
    PyBuffer_Release(&view)
    return digest_bytes(&found), zero


def digest_zeros(size_t length):
    cdef tz_digest found
    with nogil:
        tz_digest_zeros(&found, length)
    return digest_bytes(&found)


def is_zero(data):
    cdef Py_buffer view
    cdef bint zero
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    with nogil:
        zero = tz_is_zero(view.buf, view.len)
    PyBuffer_Release(&view)
    return zero
