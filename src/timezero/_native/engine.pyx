# SPDX-License-Identifier: Apache-2.0
# cython: language_level=3
"""What the I/O core was built with, and what this kernel allows it."""

import os

from timezero._native.io cimport tz_io_probe_uring

cdef extern from *:
    """
    #ifdef TZ_HAVE_URING
    #define TZ_ENGINE_LIBURING TZ_URING_VERSION
    #else
    #define TZ_ENGINE_LIBURING ""
    #endif
    """
    const char *TZ_ENGINE_LIBURING


def uring_compiled() -> bool:
    return bool(TZ_ENGINE_LIBURING[0])


def liburing_version() -> str:
    return TZ_ENGINE_LIBURING.decode("ascii")


def probe_uring() -> tuple[bool, str]:
    cdef const char *step = NULL
    cdef int result
    with nogil:
        result = tz_io_probe_uring(&step)
    if result >= 0:
        return True, ""
    reason = os.strerror(-result)
    return False, reason if step == NULL else f"{step.decode('utf-8', 'replace')}: {reason}"
