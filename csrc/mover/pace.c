/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast the mover goes.
 *
 * Rate: one bucket over all workers, kept as the time up to which everything admitted is paid for
 * (`next_ns`). A chunk is admitted when that time is not ahead of now, and moves it by its length / rate; a pause
 * earns at most TZ_BURST_NS of credit. What turned out not to be read is refunded.
 *
 * Yielding: every TZ_LOOK_NS the sessions' update counters are looked at. While they move, one chunk is kept in flight
 * over all workers, in pieces, so that what an update finds in the device's queue is one request of ours; once they
 * rest, the level doubles at each look up to full depth. A sidefile that fills counts against yielding: from halfway
 * between its marks to the high one the level rises in proportion from one to full, because a punctured session
 * helps nobody.
 *
 * Pieces are narrow for an application that has few updates, for it feels each wait and leaves us the device anyway,
 * and wide for one that has more updates than we have requests: it keeps the queue full by itself, and gets as many
 * turns as we do, so narrow ones would not let the backup get anywhere.
 *
 * bench/intercept/README.md has the sweeps over pieces, levels and pressure behind the constants.
 */
#include "internal.h"

#define TZ_BURST_NS    (20 * UINT64_C(1000000))
#define TZ_LOOK_NS     (20 * UINT64_C(1000000))
#define TZ_YIELD_LEVEL 1

#define TZ_NARROW_PIECE (256 * TZ_KIB)
#define TZ_WIDE_PIECE   (512 * TZ_KIB)

/* Updates for each request of ours: above this wide, below a quarter of it narrow, in between as before. */
#define TZ_WIDE_UPDATES 1

void tz_pace_create(tz_pace *pace, const tz_mover_config *config)
{
    pthread_mutex_init(&pace->lock, NULL);
    pace->rate = config->rate;
    pace->next_ns = 0;
    pace->yields = config->opportunistic;
    pace->look_ns = 0;
    pace->updates = pace->seen = 0;
    atomic_init(&pace->requests, 0);
    atomic_init(&pace->wide, false);
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

/* What a filling sidefile asks for: in proportion between the middle of the marks and the high one. At the low mark
 * the order of copying changes, which costs the application nothing; speed does. */
static uint32_t level_for(const tz_activity *activity, uint32_t full)
{
    uint32_t from = activity->low + (activity->high - tz_min_u64(activity->low, activity->high)) / 2;
    uint64_t span = activity->high > from ? activity->high - from : 1;
    uint64_t over = activity->used > from ? activity->used - from : 0;

    return (uint32_t)tz_min_u64(full, TZ_YIELD_LEVEL + full * over / span);
}

/* Under the lock: wide pieces or narrow ones, from what happened since the last look. */
static void choose_pieces(tz_pace *pace, uint64_t updates)
{
    uint64_t requests = atomic_load_explicit(&pace->requests, memory_order_relaxed);
    uint64_t theirs = updates - tz_min_u64(pace->updates, updates), ours = requests - pace->seen;

    pace->seen = requests;
    /* Under a rate ours are few because the user says so. */
    if (theirs > ours * TZ_WIDE_UPDATES && pace->rate == 0)
        atomic_store(&pace->wide, true);
    else if (4 * theirs < ours * TZ_WIDE_UPDATES)
        atomic_store(&pace->wide, false);
}

/* Under the lock: the activity of all gates since the last look, and the level that follows from it. */
static void look(tz_mover *mover)
{
    tz_pace *pace = &mover->pace;
    uint32_t level = TZ_YIELD_LEVEL;
    uint64_t updates = 0;
    const void *gate = NULL;

    for (uint32_t i = 0; i < mover->count; i++) {
        tz_transfer *transfer = mover->transfers[i];
        tz_activity activity;

        if (!transfer->source->ops->activity)
            continue;
        transfer->source->ops->activity(transfer->source, &activity);
        /* Files of one volume have been added in a row, and its updates count once. */
        if (activity.gate != gate)
            updates += activity.updates;
        gate = activity.gate;
        if (!atomic_load(&transfer->ended))
            level = (uint32_t)tz_max_u64(level, level_for(&activity, pace->full));
    }
    if (updates == pace->updates)
        level = (uint32_t)tz_min_u64(pace->full, 2 * (uint64_t)atomic_load(&pace->level));
    choose_pieces(pace, updates);
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
    if (!pace->yields || atomic_load(&pace->level) >= pace->full)
        return 0;
    return atomic_load(&pace->wide) ? TZ_WIDE_PIECE : TZ_NARROW_PIECE;
}

void tz_pace_requested(tz_pace *pace)
{
    if (pace->yields)
        atomic_fetch_add_explicit(&pace->requests, 1, memory_order_relaxed);
}
