/* SPDX-License-Identifier: Apache-2.0
 *
 * What every module of the core takes for granted: sizes, arithmetic on powers of two, hints.
 *
 * Conventions of all of csrc:
 *   Errors   0 or a count on success, -errno on failure; outputs by pointer, untouched on failure.
 *   Checks   invariants of our own are asserts; anything that comes from a peer, a disk or a user
 *            is checked and answered with an error, never asserted.
 *   Memory   who creates destroys; destroy functions accept NULL.
 *   Threads  an object belongs to one thread unless its header says otherwise.
 */
#ifndef TZ_COMMON_H
#define TZ_COMMON_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TZ_KIB ((uint64_t)1024)
#define TZ_MIB (1024 * TZ_KIB)
#define TZ_GIB (1024 * TZ_MIB)

#define TZ_CACHE_LINE 64

#define TZ_TRACK_MIN     (4 * TZ_KIB)
#define TZ_TRACK_MAX     (1 * TZ_MIB)
#define TZ_CHUNK_DEFAULT (1 * TZ_MIB)
#define TZ_CHUNK_MAX     (16 * TZ_MIB)

#define tz_likely(x)   __builtin_expect(!!(x), 1)
#define tz_unlikely(x) __builtin_expect(!!(x), 0)

#define tz_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static inline bool tz_is_pow2(uint64_t n)
{
    return n && !(n & (n - 1));
}

/* `to` is a power of two. */
static inline uint64_t tz_align_down(uint64_t n, uint64_t to)
{
    return n & ~(to - 1);
}

static inline uint64_t tz_align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) & ~(to - 1);
}

static inline uint64_t tz_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t tz_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
