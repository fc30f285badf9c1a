/* SPDX-License-Identifier: Apache-2.0
 *
 * How fast the mover goes.
 *
 * Rate: one bucket over all workers, kept as the time up to which everything admitted is paid for
 * (`next_ns`). A chunk is admitted when that time is not ahead of now, and moves it by its length / rate; a pause
 * earns at most TZ_BURST_NS of credit. What turned out not to be read is refunded.
 *
 * Yielding: every TZ_LOOK_NS the load that each gate publishes is looked at, and the controller says how many chunks may
 * be in flight, in what pieces, and with what pauses between those (controller.h argues how). Here are its senses and
 * its hands: the clock, the gates' memory, the pieces. A volume of which everything is copied is looked at no more.
 *
 * Waiting (outside of its hours): nothing is begun but chunks that a sidefile needs copied, as long as it does.
 */
#include "internal.h"

#define TZ_BURST_NS (20 * UINT64_C(1000000))

/* What an application that was there this long ago may still be about to ask for. */
#define TZ_RECENT_NS (500 * UINT64_C(1000000))

/* Rates of the controller are kept for pieces, not for chunks: no more than this is paid for in advance. */
#define TZ_PAUSE_MOST_NS (100 * UINT64_C(1000000))

void tz_pace_create(tz_pace *pace, const tz_mover_config *config, uint32_t frames)
{
    pthread_mutex_init(&pace->lock, NULL);
    pace->rate = config->rate;
    pace->next_ns = pace->piece_next_ns = 0;
    pace->yields = config->opportunistic;
    pace->target.ns = config->latency_ns;
    pace->target.factor = (config->latency_percent ? config->latency_percent : TZ_LATENCY_PERCENT) / 100.0;
    pace->look_ns = 0;
    pace->full = config->workers * config->depth;
    pace->frames = frames;
    pace->meter = (tz_meter){0};
    pace->gates = 0;
    pace->calm = TZ_CALM_NOT;
    atomic_init(&pace->waiting, false);
    atomic_init(&pace->moved, 0);
    atomic_init(&pace->requests, 0);
    atomic_init(&pace->slowed, false);
    atomic_init(&pace->depth, pace->full);
    atomic_init(&pace->piece, 0);
    atomic_init(&pace->piece_rate, 0);
}

void tz_pace_destroy(tz_pace *pace)
{
    tz_meter_fini(&pace->meter);
    pthread_mutex_destroy(&pace->lock);
}

/* ---- what the gates say ---- */

static bool has_gate(const tz_transfer *transfer, tz_activity *activity)
{
    if (!transfer->source->ops->activity)
        return false;
    transfer->source->ops->activity(transfer->source, activity);
    return true;
}

/* The next gate from transfer *at on: files of one volume have been added in a row, and their gate counts once. `copying`:
 * some of them are not yet through. False when there is none. */
static bool next_gate(const tz_mover *mover, uint32_t *at, tz_activity *activity, bool *copying)
{
    tz_activity other;

    while (*at < mover->count && !has_gate(mover->transfers[*at], activity))
        ++*at;
    if (*at == mover->count)
        return false;
    *copying = false;
    for (; *at < mover->count; ++*at) {
        if (!has_gate(mover->transfers[*at], &other) || other.gate != activity->gate)
            break;
        *copying |= !atomic_load(&mover->transfers[*at]->ended);
    }
    return true;
}

int tz_pace_prepare(tz_mover *mover)
{
    tz_pace *pace = &mover->pace;
    tz_controller_config config = {.full = pace->full, .frames = pace->frames, .chunk_size = mover->config.chunk_size};
    uint64_t now = tz_mover_now(), last = 0;
    uint32_t at = 0, gates = 0;
    tz_activity activity;
    bool copying;
    int rc;

    while (pace->yields && next_gate(mover, &at, &activity, &copying))
        gates++;
    if (gates == 0)
        return 0;
    rc = tz_meter_init(&pace->meter, &pace->target, gates);
    if (rc < 0)
        return rc;
    for (at = 0; pace->gates < gates && next_gate(mover, &at, &activity, &copying); pace->gates++) {
        tz_meter_add(&pace->meter, activity.load, activity.usual, now);
        last = tz_max_u64(last, tz_load_get(&activity.load->last_ns));
    }
    /* A clock of another time namespace: nothing is known, and the application is taken to be there. */
    tz_controller_init(&pace->controller, &config, last <= now && now - last >= TZ_RECENT_NS, now);
    return 0;
}

/* What a filling sidefile asks for: in proportion between the middle of the marks and the high one. At the low mark
 * the order of copying changes, which costs the application nothing; speed does. */
static double pressure_of(const tz_activity *activity)
{
    uint64_t from = activity->low + (activity->high - tz_min_u64(activity->low, activity->high)) / 2;
    uint64_t span = activity->high > from ? activity->high - from : 1;

    return activity->used > from ? tz_min_u64(activity->used - from, span) / (double)span : 0;
}

bool tz_pace_drains(const tz_activity *activity)
{
    return pressure_of(activity) > 0;
}

/* Under the lock: the load of all gates since the last look, and what follows from it. */
static void look(tz_mover *mover, uint64_t now)
{
    tz_pace *pace = &mover->pace;
    tz_sight sight = {.now_ns = now, .moved = atomic_load_explicit(&pace->moved, memory_order_relaxed)};
    bool rests = tz_pace_waits(pace);
    tz_activity activity;
    uint32_t at = 0;
    tz_press press;
    bool copying;

    for (uint32_t gate = 0; gate < pace->gates && next_gate(mover, &at, &activity, &copying); gate++) {
        if (!copying) {
            tz_meter_leave(&pace->meter, gate, now);
            continue;
        }
        rests &= !activity.past_low;
        sight.pressure = pressure_of(&activity) > sight.pressure ? pressure_of(&activity) : sight.pressure;
    }
    sight.reading = tz_meter_look(&pace->meter, pace->calm, now);
    sight.rests = rests;
    press = tz_controller_look(&pace->controller, &sight);
    pace->calm = press.calm;
    atomic_store(&pace->slowed, press.yields);
    atomic_store(&pace->depth, press.depth);
    atomic_store(&pace->piece, press.piece);
    atomic_store(&pace->piece_rate, press.rate);
}

/* ---- rates ---- */

/* Chunks are at most 16 MiB, so the product fits. */
static uint64_t cost(uint64_t rate, uint64_t bytes)
{
    return bytes * UINT64_C(1000000000) / rate;
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
        pace->next_ns = tz_max_u64(pace->next_ns, now - tz_min_u64(now, TZ_BURST_NS)) + cost(pace->rate, bytes);
    pthread_mutex_unlock(&pace->lock);
    return wait;
}

void tz_pace_refund(tz_pace *pace, uint64_t bytes)
{
    if (pace->rate == 0)
        return;
    pthread_mutex_lock(&pace->lock);
    pace->next_ns -= tz_min_u64(pace->next_ns, cost(pace->rate, bytes));
    pthread_mutex_unlock(&pace->lock);
}

/* No credit for the past: what was not used was the application's. */
uint64_t tz_pace_take(tz_pace *pace, uint64_t bytes)
{
    uint64_t rate = atomic_load_explicit(&pace->piece_rate, memory_order_relaxed), now, begin;

    if (pace->yields) {
        atomic_fetch_add_explicit(&pace->moved, bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&pace->requests, 1, memory_order_relaxed);
    }
    if (rate == 0)
        return 0;
    now = tz_mover_now();
    pthread_mutex_lock(&pace->lock);
    begin = tz_max_u64(now, tz_min_u64(pace->piece_next_ns, now + TZ_PAUSE_MOST_NS));
    pace->piece_next_ns = begin + cost(rate, bytes);
    pthread_mutex_unlock(&pace->lock);
    return begin - now;
}

/* ---- depth and pieces ---- */

static uint32_t depth_while_waiting(tz_mover *mover)
{
    tz_activity activity;
    uint32_t at = 0;
    bool copying;

    while (next_gate(mover, &at, &activity, &copying))
        if (copying && activity.past_low)
            return atomic_load(&mover->pace.depth);
    return 0;
}

uint32_t tz_pace_depth(tz_mover *mover, uint32_t worker)
{
    tz_pace *pace = &mover->pace;
    uint32_t depth, workers = mover->config.workers;
    uint64_t now;

    if (pace->gates > 0) {
        now = tz_mover_now();
        pthread_mutex_lock(&pace->lock);
        if (now - pace->look_ns >= TZ_LOOK_NS) {
            look(mover, now);
            pace->look_ns = now;
        }
        pthread_mutex_unlock(&pace->lock);
    }
    depth = tz_pace_waits(pace) ? depth_while_waiting(mover) : atomic_load(&pace->depth);
    /* Low workers first: ordered sinks are served by worker 0. */
    return depth / workers + (worker < depth % workers);
}

uint32_t tz_pace_piece(const tz_pace *pace)
{
    return atomic_load_explicit(&pace->piece, memory_order_relaxed);
}
