/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast the mover goes.
 *
 * Rate: one bucket over all workers, kept as the time up to which everything admitted is paid for
 * (`next_ns`). A chunk is admitted when that time is not ahead of now, and moves it by its length / rate; a pause
 * earns at most TZ_BURST_NS of credit. What turned out not to be read is refunded.
 *
 * Yielding: every TZ_LOOK_NS the sessions' update counters are looked at. While they move, one request of
 * TZ_YIELD_PIECE is kept in flight over all workers; once they rest, the level doubles at each look up
 * to full depth. A sidefile that fills counts against yielding: between its low and high mark the level
 * rises in proportion from one to full, because a punctured session helps nobody.
 *
 * Measured on a shared disk (4k random writes at depth 4, alone 48,000 IOPS): a copy with one request of
 * 256 KiB in flight leaves 19,000 (p99 0.45 ms) and takes 6.5 s for 4 GiB, eight of 1 MiB leave 1,900 (3.5 ms) and
 * take 2.7 s.
 * bench/intercept/README.md has the sweep over pieces, levels and pressure: none is better than these beyond its noise.
 */
#include "internal.h"

#define TZ_BURST_NS    (20 * UINT64_C(1000000))
#define TZ_LOOK_NS     (20 * UINT64_C(1000000))
#define TZ_YIELD_LEVEL 1
#define TZ_YIELD_PIECE (256 * TZ_KIB)

void tz_pace_create(tz_pace *pace, const tz_mover_config *config)
{
    pthread_mutex_init(&pace->lock, NULL);
    pace->rate = config->rate;
    pace->next_ns = 0;
    pace->yields = config->opportunistic;
    pace->look_ns = 0;
    pace->updates = 0;
    pace->full = config->workers * config->depth;
    atomic_init(&pace->level, pace->full);
}

void tz_pace_destroy(tz_pace *pace)
{
    pthread_mutex_destroy(&pace->lock);
}

uint64_t tz_pace_interval(void)
{
    return TZ_LOOK_NS;
}

/* Chunks are at most 16 MiB, so the product fits. */
static uint64_t cost(const tz_pace *pace, uint64_t bytes)
{
    return bytes * UINT64_C(1000000000) / pace->rate;
}

uint64_t tz_pace_admit(tz_pace *pace, uint64_t bytes)
{
    uint64_t now, wait = 0;

    if (pace->rate == 0)
        return 0;
    now = tz_mover_now();
    pthread_mutex_lock(&pace->lock);
    if (pace->next_ns > now)
        wait = pace->next_ns - now;
    else
        pace->next_ns = tz_max_u64(pace->next_ns, now - tz_min_u64(now, TZ_BURST_NS)) + cost(pace, bytes);
    pthread_mutex_unlock(&pace->lock);
    return wait;
}

void tz_pace_refund(tz_pace *pace, uint64_t bytes)
{
    if (pace->rate == 0)
        return;
    pthread_mutex_lock(&pace->lock);
    pace->next_ns -= tz_min_u64(pace->next_ns, cost(pace, bytes));
    pthread_mutex_unlock(&pace->lock);
}

/* What a filling sidefile asks for: in proportion between the marks. */
static uint32_t level_for(const tz_activity *activity, uint32_t full)
{
    uint64_t span = activity->high > activity->low ? activity->high - activity->low : 1;
    uint64_t over = activity->used > activity->low ? activity->used - activity->low : 0;

    return (uint32_t)tz_min_u64(full, TZ_YIELD_LEVEL + full * over / span);
}

/* Under the lock: the activity of all gates since the last look, and the level that follows from it. */
static void look(tz_mover *mover)
{
    tz_pace *pace = &mover->pace;
    uint32_t level = TZ_YIELD_LEVEL;
    uint64_t updates = 0;

    for (uint32_t i = 0; i < mover->count; i++) {
        tz_transfer *transfer = mover->transfers[i];
        tz_activity activity;

        if (!transfer->source->ops->activity)
            continue;
        transfer->source->ops->activity(transfer->source, &activity);
        updates += activity.updates;
        if (!atomic_load(&transfer->ended))
            level = (uint32_t)tz_max_u64(level, level_for(&activity, pace->full));
    }
    if (updates == pace->updates)
        level = (uint32_t)tz_min_u64(pace->full, 2 * (uint64_t)atomic_load(&pace->level));
    pace->updates = updates;
    atomic_store(&pace->level, level);
}

uint32_t tz_pace_depth(tz_mover *mover, uint32_t worker)
{
    tz_pace *pace = &mover->pace;
    uint32_t level, workers = mover->config.workers;
    uint64_t now;

    if (!pace->yields)
        return mover->config.depth;
    now = tz_mover_now();
    pthread_mutex_lock(&pace->lock);
    if (now - pace->look_ns >= TZ_LOOK_NS) {
        look(mover);
        pace->look_ns = now;
    }
    level = atomic_load(&pace->level);
    pthread_mutex_unlock(&pace->lock);
    /* Low workers first: ordered sinks are served by worker 0. */
    return level / workers + (worker < level % workers);
}

uint32_t tz_pace_piece(const tz_pace *pace)
{
    return pace->yields && atomic_load(&pace->level) < pace->full ? TZ_YIELD_PIECE : 0;
}
