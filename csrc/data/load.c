/* SPDX-License-Identifier: Apache-2.0 */
#include "tz/load.h"

void tz_load_fade(tz_load_histogram *histogram)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++) {
        uint64_t half = tz_load_get(&histogram->buckets[i]) / 2;

        atomic_store_explicit(&histogram->buckets[i], half, memory_order_relaxed);
        total += half;
    }
    atomic_store_explicit(&histogram->count, total, memory_order_relaxed);
}

static void copy(_Atomic uint64_t *to, const _Atomic uint64_t *from)
{
    atomic_store_explicit(to, tz_load_get(from), memory_order_relaxed);
}

static void copy32(_Atomic uint32_t *to, const _Atomic uint32_t *from)
{
    atomic_store_explicit(to, atomic_load_explicit(from, memory_order_relaxed), memory_order_relaxed);
}

void tz_load_copy(tz_load *to, const tz_load *from)
{
    copy(&to->last_ns, &from->last_ns);
    copy32(&to->reads_in_flight, &from->reads_in_flight);
    copy32(&to->updates_in_flight, &from->updates_in_flight);
    copy(&to->arrived, &from->arrived);
    copy(&to->read_bytes, &from->read_bytes);
    copy(&to->written_bytes, &from->written_bytes);
    for (uint32_t measure = 0; measure < TZ_LOAD_MEASURES; measure++) {
        copy(&to->histograms[measure].count, &from->histograms[measure].count);
        for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
            copy(&to->histograms[measure].buckets[i], &from->histograms[measure].buckets[i]);
    }
}

uint64_t tz_load_quantile_of(const uint64_t *buckets, uint64_t total, double q)
{
    double rank = q * (double)total, before = 0;

    if (total == 0)
        return 0;
    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++) {
        double here = (double)buckets[i];

        if (here > 0 && before + here >= rank) {
            uint64_t from = tz_load_bucket_from(i), to = tz_load_bucket_from(i + 1);
            double share = rank > before ? (rank - before) / here : 0;

            return from + (uint64_t)(share * (double)(to - from));
        }
        before += here;
    }
    return tz_load_bucket_from(TZ_LOAD_BUCKETS); /* counts that were read while they changed */
}

uint64_t tz_load_quantile(const tz_load_histogram *histogram, double q)
{
    uint64_t buckets[TZ_LOAD_BUCKETS], total = 0;

    for (uint32_t i = 0; i < TZ_LOAD_BUCKETS; i++)
        total += buckets[i] = tz_load_get(&histogram->buckets[i]);
    return tz_load_quantile_of(buckets, total, q);
}
