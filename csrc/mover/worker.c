/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker: a thread with an engine of its own that keeps chunks of all transfers in flight.
 *
 *   pump: while there is room, start chunks, one of each transfer in turn ─▶ run the engine ─▶ pump ...
 *
 * It sleeps in the engine alone. What wakes it: an operation's end, its timer (rate, yielding), and messages:
 * an area was granted, a frame came free after one was refused, a transfer stopped or ended.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "internal.h"

/* Chunks started in one go before the engine gets its turn: holes complete at once and could go on for long. */
#define TZ_PUMP_BATCH 64

static void on_wake(tz_io_message *message)
{
    tz_worker *worker = tz_container_of(message, tz_worker, wake);

    atomic_store(&worker->wake_posted, false);
}

void tz_worker_wake(tz_worker *worker)
{
    if (!atomic_exchange(&worker->wake_posted, true))
        tz_io_post(worker->io, &worker->wake);
}

void tz_mover_wake_all(tz_mover *mover)
{
    for (uint32_t i = 0; i < mover->config.workers; i++)
        tz_worker_wake(&mover->workers[i]);
}

static void on_timer(tz_io_op *op, int64_t result)
{
    tz_worker *worker = op->user;

    (void)result;
    worker->timer_armed = false;
}

static void arm_timer(tz_worker *worker, uint64_t ns)
{
    if (worker->timer_armed)
        return;
    worker->timer = (tz_io_op){.opcode = TZ_IO_TIMEOUT, .length = ns, .done = on_timer, .user = worker};
    worker->timer_armed = true;
    tz_io_submit(worker->io, &worker->timer);
}

static tz_chunk *free_chunk(tz_worker *worker)
{
    for (uint32_t i = 0; i < worker->mover->chunks_each; i++)
        if (worker->chunks[i].state == TZ_CHUNK_FREE)
            return &worker->chunks[i];
    return NULL;
}

/* On a visit: the next chunk with a frame, admitted by the pace. NULL: not now. */
static void *next_chunk(tz_worker *worker, tz_transfer *transfer, uint64_t *number)
{
    tz_mover *mover = worker->mover;
    uint64_t wait;
    void *frame;

    assert(atomic_load(&transfer->granted));
    if (atomic_load_explicit(&transfer->started_ns, memory_order_relaxed) == 0) {
        uint64_t never = 0;

        if (atomic_compare_exchange_strong(&transfer->started_ns, &never, tz_mover_now()))
            atomic_fetch_add(&mover->running, 1);
    }
    wait = tz_pace_admit(&mover->pace, mover->config.chunk_size);
    if (wait) {
        arm_timer(worker, wait);
        return NULL;
    }
    frame = tz_area_take(transfer->area);
    if (frame && tz_transfer_claim(transfer, number))
        return frame;
    tz_pace_refund(&mover->pace, mover->config.chunk_size);
    if (frame)
        tz_area_give(transfer->area, frame);
    return NULL;
}

/* One place is left for each other transfer that runs: a slow or stuck end of one holds up nobody else. */
static bool has_share(const tz_worker *worker, const tz_transfer *transfer, uint32_t depth)
{
    uint32_t running = atomic_load_explicit(&worker->mover->running, memory_order_relaxed);
    uint32_t others = running > 1 ? running - 1 : 0, mine = 0;

    if (worker->in_flight >= depth)
        return false;
    for (uint32_t i = 0; i < worker->mover->chunks_each && others > 0; i++)
        mine += worker->chunks[i].state != TZ_CHUNK_FREE && worker->chunks[i].transfer == transfer;
    return mine < (depth > others ? depth - others : 1);
}

/* Looks after one transfer: its end, its beginning, its next chunk. True when a chunk was started. */
static bool serve(tz_worker *worker, tz_transfer *transfer, uint32_t depth)
{
    uint64_t number;
    void *frame;

    if (atomic_load(&transfer->ended) || (transfer->sink->ops->ordered && worker->number != 0))
        return false;
    if (transfer->chunks == 0 || atomic_load(&transfer->stopping)) {
        tz_worker_interrupt(worker, transfer);
        tz_transfer_settle(transfer);
        return false;
    }
    if (!has_share(worker, transfer, depth) || !tz_transfer_enter(transfer))
        return false;
    frame = next_chunk(worker, transfer, &number);
    if (!frame) {
        tz_transfer_leave(transfer, false);
        return false;
    }
    tz_chunk_start(free_chunk(worker), transfer, number, frame);
    return true;
}

/* Takes up the transfers that have become live. Those in line for an area cost nothing until it is their turn, be they
 * ten thousand; who stops while in line is seen when those before have been. */
static void take_up(tz_worker *worker)
{
    tz_mover *mover = worker->mover;

    for (; worker->next < mover->count; worker->next++) {
        tz_transfer *transfer = mover->transfers[worker->next];

        if (transfer->chunks > 0 && !atomic_load(&transfer->granted) && !atomic_load(&transfer->stopping))
            return;
        worker->live[worker->live_count++] = transfer;
    }
}

static bool drop_ended(tz_worker *worker, uint32_t place)
{
    if (!atomic_load(&worker->live[place]->ended))
        return false;
    worker->live[place] = worker->live[--worker->live_count];
    return true;
}

/* Chunks that the worker may have in flight now. */
static uint32_t depth_now(tz_worker *worker)
{
    tz_mover *mover = worker->mover;
    uint32_t depth = tz_pace_depth(mover, worker->number);

    if (depth < mover->config.depth || mover->config.rate)
        tz_depth_disturbed(&mover->depth);
    else
        depth = atomic_load_explicit(&mover->depth.limit, memory_order_relaxed);
    /* While it waits for its hours, it may find nothing to do and yet has to look. */
    if (depth == 0 || tz_pace_waits(&mover->pace))
        arm_timer(worker, TZ_LOOK_NS);
    return depth;
}

/* Fills the worker's depth. True when it stopped for the engine's sake only. */
static bool pump(tz_worker *worker)
{
    uint32_t idle = 0, started = 0, depth = depth_now(worker);

    take_up(worker);
    /* Every live transfer is looked at once even when there is no room: it may be stopping. */
    while (idle < worker->live_count && started < TZ_PUMP_BATCH) {
        uint32_t place = worker->turn++ % worker->live_count;

        if (serve(worker, worker->live[place], depth)) {
            started++;
            idle = 0;
        } else if (drop_ended(worker, place)) {
            idle = 0; /* another has its place, and the turn has lost its count: all are looked at anew */
        } else {
            idle++;
        }
    }
    return idle < worker->live_count;
}

static bool all_ended(tz_mover *mover)
{
    bool all;

    pthread_mutex_lock(&mover->lock);
    all = mover->ended == mover->count;
    pthread_mutex_unlock(&mover->lock);
    return all;
}

static void *worker_main(void *arg)
{
    tz_worker *worker = arg;
    tz_mover *mover = worker->mover;

    pthread_setname_np(pthread_self(), "tz-mover");
    while (!all_ended(mover)) {
        bool more = pump(worker);
        int rc = tz_io_run(worker->io, more ? 0 : -1);

        if (rc < 0 && rc != -EINTR)
            for (uint32_t i = 0; i < mover->count; i++)
                tz_transfer_fail(mover->transfers[i], rc, TZ_SIDE_NONE, 0);
    }
    if (worker->timer_armed)
        tz_io_cancel(worker->io, &worker->timer);
    while (tz_io_inflight(worker->io) > 0)
        tz_io_run(worker->io, -1);
    return NULL;
}

int tz_worker_create(tz_worker *worker, tz_mover *mover, uint32_t number)
{
    tz_io_config config = {.kind = mover->config.io, .depth = mover->chunks_each + 1, .threads = 0};
    int rc;

    worker->mover = mover;
    worker->number = number;
    worker->wake.run = on_wake;
    worker->chunks = calloc(mover->chunks_each, sizeof(*worker->chunks));
    if (!worker->chunks)
        return -ENOMEM;
    for (uint32_t i = 0; i < mover->chunks_each; i++)
        worker->chunks[i].worker = worker;
    rc = tz_io_create(&worker->io, &config);
    if (rc < 0) {
        free(worker->chunks);
        worker->chunks = NULL;
    }
    return rc;
}

int tz_worker_prepare(tz_worker *worker)
{
    worker->live = calloc(tz_max_u64(worker->mover->count, 1), sizeof(tz_transfer *));
    return worker->live ? 0 : -ENOMEM;
}

/* Signals are for the application's own threads: SIGPIPE of a stream's reader included. */
int tz_worker_start(tz_worker *worker)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    worker->running = rc == 0;
    return -rc;
}

void tz_worker_join(tz_worker *worker)
{
    if (worker->running)
        pthread_join(worker->thread, NULL);
}

void tz_worker_destroy(tz_worker *worker)
{
    tz_io_destroy(worker->io);
    for (uint32_t i = 0; i < worker->mover->chunks_each; i++)
        free(worker->chunks[i].bounce);
    free(worker->chunks);
    free(worker->live);
}
