/* SPDX-License-Identifier: Apache-2.0
 *
 * The application's load on a volume, as its storage subsystem measures it and others read it: what is in flight, how
 * much was moved, and how long requests took, in histograms.
 *
 * Reads and updates are kept apart. A disk that answers the one from its cache and not the other has latencies a
 * hundredfold apart; put together, a change of their mix would look like harm, and harm to the rarer kind like nothing.
 * Both are measured from their arrival: what a gate held an update for is what the application waited, too.
 *
 * Buckets are log-linear: eight to each power of two, so that a quantile is known to an eighth before interpolation, from
 * 256 ns (all below is linear) to 68 s. Counters only grow, so that a reader makes a window of time out of two looks.
 *
 * Threads  one owner adds, with relaxed stores; anybody reads. Counts read at once may be a request apart.
 */
#ifndef TZ_LOAD_H
#define TZ_LOAD_H

#include <stdatomic.h>

#include "tz/common.h"

#define TZ_LOAD_UNIT_SHIFT 8  /* log2 of the smallest difference, ns */
#define TZ_LOAD_SUB_SHIFT  3  /* log2 of the buckets to a power of two */
#define TZ_LOAD_TOP_SHIFT  36 /* log2 of what the last bucket ends at, ns */
#define TZ_LOAD_BUCKETS    ((TZ_LOAD_TOP_SHIFT - TZ_LOAD_UNIT_SHIFT - TZ_LOAD_SUB_SHIFT + 1) << TZ_LOAD_SUB_SHIFT)

enum tz_load_measure {
    TZ_LOAD_READS = 0,
    TZ_LOAD_UPDATES = 1, /* writes */
    TZ_LOAD_MEASURES = 2,
};

typedef struct tz_load_histogram {
    _Atomic uint64_t count;
    _Atomic uint64_t buckets[TZ_LOAD_BUCKETS];
} tz_load_histogram;

typedef struct tz_load {
    _Atomic uint64_t last_ns;                            /* when a request last came or went, CLOCK_MONOTONIC */
    _Atomic uint32_t reads_in_flight, updates_in_flight; /* arrived and not completed; trims and zeroes are updates */
    _Atomic uint64_t arrived;                            /* reads and updates */
    _Atomic uint64_t read_bytes, written_bytes;          /* completed */
    tz_load_histogram
        histograms[TZ_LOAD_MEASURES]; /* without trims, zeroes and what failed: they tell of other things */
} tz_load;

static inline uint32_t tz_load_bucket(uint64_t ns)
{
    uint64_t units = ns >> TZ_LOAD_UNIT_SHIFT;
    uint32_t power;

    if (units < 1u << TZ_LOAD_SUB_SHIFT)
        return (uint32_t)units;
    power = 63 - (uint32_t)__builtin_clzll(units);
    if (power >= TZ_LOAD_TOP_SHIFT - TZ_LOAD_UNIT_SHIFT)
        return TZ_LOAD_BUCKETS - 1;
    return ((power - TZ_LOAD_SUB_SHIFT) << TZ_LOAD_SUB_SHIFT) + (uint32_t)(units >> (power - TZ_LOAD_SUB_SHIFT));
}

/* Where a bucket begins, ns; that of bucket TZ_LOAD_BUCKETS is where the last one ends. */
static inline uint64_t tz_load_bucket_from(uint32_t bucket)
{
    uint32_t octave = bucket >> TZ_LOAD_SUB_SHIFT, sub = bucket & ((1u << TZ_LOAD_SUB_SHIFT) - 1);

    if (octave == 0)
        return (uint64_t)bucket << TZ_LOAD_UNIT_SHIFT;
    return (uint64_t)(sub + (1u << TZ_LOAD_SUB_SHIFT)) << (octave - 1 + TZ_LOAD_UNIT_SHIFT);
}

static inline uint64_t tz_load_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* The owner's: no read-modify-write is needed. */
static inline void tz_load_bump(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_store_explicit(counter, tz_load_get(counter) + by, memory_order_relaxed);
}

static inline void tz_load_add(tz_load_histogram *histogram, uint64_t ns)
{
    tz_load_bump(&histogram->buckets[tz_load_bucket(ns)], 1);
    tz_load_bump(&histogram->count, 1);
}

/* ---- csrc/data/load.c ---- */

/* The owner's: halves all counts, so that what was long ago weighs less than what is new. */
void tz_load_fade(tz_load_histogram *histogram);

/* Copies what is there; the owner of both, or a reader's copy of its own. */
void tz_load_copy(tz_load *to, const tz_load *from);

/* The latency, ns, that a share `q` (0 to 1) of `total` counts does not pass, interpolated in its bucket; 0 when
 * there are none. */
uint64_t tz_load_quantile_of(const uint64_t *buckets, uint64_t total, double q);
uint64_t tz_load_quantile(const tz_load_histogram *histogram, double q);

#endif
