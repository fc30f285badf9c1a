/* SPDX-License-Identifier: Apache-2.0
 *
 * A transfer: which chunks are claimed, in flight, stored, and its end.
 *
 *   waiting for its area ─▶ claiming ─▶ all claimed ─▶ nothing in flight ─▶ ended
 *                              └── error, cancel: stopping ──────▲
 *
 * Whoever brings about the last condition performs the end: the sink's finish, the area's release.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

uint32_t tz_transfer_chunk_length(const tz_transfer *transfer, uint64_t number)
{
    uint64_t chunk_size = transfer->mover->config.chunk_size;

    return (uint32_t)tz_min_u64(chunk_size, transfer->size - number * chunk_size);
}

int tz_transfer_create(tz_transfer **out, tz_mover *mover, tz_source *source, tz_sink *sink, tz_index_entry *index)
{
    uint32_t chunk_size = mover->config.chunk_size;
    tz_transfer *transfer;
    size_t bytes;
    int rc;

    if (sink->ops->look && !source->ops->check)
        return -EINVAL;
    rc = source->ops->prepare(source, chunk_size);
    if (rc == 0 && sink->ops->prepare)
        rc = sink->ops->prepare(sink, source->size);
    if (rc < 0)
        return rc;
    transfer = calloc(1, sizeof(*transfer));
    if (!transfer)
        return -ENOMEM;
    transfer->mover = mover;
    transfer->size = source->size;
    transfer->chunks = (source->size + chunk_size - 1) / chunk_size;
    bytes = tz_bitmap_bytes(transfer->chunks);
    transfer->claimed_memory = calloc(1, bytes ? bytes : 8);
    if (source->salvage || sink->ops->look)
        transfer->outcomes = calloc(1, tz_max_u64(transfer->chunks, 1));
    if (!transfer->claimed_memory || ((source->salvage || sink->ops->look) && !transfer->outcomes)) {
        free(transfer->claimed_memory);
        free(transfer->outcomes);
        free(transfer);
        return -ENOMEM;
    }
    tz_bitmap_init(&transfer->claimed, transfer->claimed_memory, transfer->chunks);
    pthread_mutex_init(&transfer->lock, NULL);
    transfer->index = index;
    transfer->source = source;
    transfer->sink = sink;
    source->faults = mover->config.faults;
    *out = transfer;
    return 0;
}

/* Granted, or a frame came free: who is in line is told of the first only. */
static void area_notify(void *user)
{
    tz_transfer *transfer = user;

    atomic_store(&transfer->granted, true);
    tz_mover_wake_all(transfer->mover);
}

int tz_transfer_request(tz_transfer *transfer)
{
    uint32_t useful = (uint32_t)tz_min_u64(transfer->chunks, UINT32_MAX);
    int rc;

    if (transfer->chunks == 0)
        return 0;
    rc = tz_area_request(&transfer->area, transfer->mover->space, useful, area_notify, transfer);
    if (rc == 0 && tz_area_granted(transfer->area))
        atomic_store(&transfer->granted, true);
    return rc;
}

/* A visit keeps the transfer, and with it the area, from ending: a frame is taken before a chunk is claimed. */
bool tz_transfer_enter(tz_transfer *transfer)
{
    bool enter;

    pthread_mutex_lock(&transfer->lock);
    enter = transfer->claims < transfer->chunks && !atomic_load(&transfer->stopping);
    transfer->active += enter;
    pthread_mutex_unlock(&transfer->lock);
    return enter;
}

/* Outside of its hours the mover takes what a sidefile needs copied ahead of order. What is not found that way (files of
 * one chunk, datasets that wait for an area, targets with an order) is come to in order, once the sidefile fills. */
static bool may_go_on(const tz_transfer *transfer)
{
    const tz_source *source = transfer->source;
    tz_activity activity;

    if (!tz_pace_waits(&transfer->mover->pace))
        return true;
    if (!source->ops->activity)
        return false;
    source->ops->activity(source, &activity);
    return tz_pace_drains(&activity);
}

/* The next chunk in order, or one that the source wants ahead of order. */
static int choose(tz_transfer *transfer, uint64_t *number)
{
    tz_source *source = transfer->source;
    int rc;

    if (transfer->claims == transfer->chunks)
        return 0;
    if (source->ops->ahead && !transfer->sink->ops->ordered) {
        rc = source->ops->ahead(source, &transfer->claimed, number);
        if (rc > 0)
            atomic_fetch_add_explicit(&transfer->chunks_ahead, 1, memory_order_relaxed);
        if (rc != 0)
            return rc;
    }
    if (!may_go_on(transfer))
        return 0;
    transfer->cursor = tz_bitmap_next_clear(&transfer->claimed, transfer->cursor);
    assert(transfer->cursor < transfer->chunks);
    *number = transfer->cursor++;
    tz_bitmap_claim(&transfer->claimed, *number);
    return 1;
}

bool tz_transfer_claim(tz_transfer *transfer, uint64_t *number)
{
    int rc = 0;

    pthread_mutex_lock(&transfer->lock);
    if (!atomic_load(&transfer->stopping))
        rc = choose(transfer, number);
    if (rc > 0)
        transfer->claims++;
    pthread_mutex_unlock(&transfer->lock);
    if (rc < 0)
        tz_transfer_fail(transfer, rc, TZ_SIDE_SESSION, 0);
    return rc > 0;
}

void tz_transfer_fail(tz_transfer *transfer, int error, enum tz_transfer_side side, uint64_t offset)
{
    bool first;

    pthread_mutex_lock(&transfer->lock);
    first = !transfer->ending && transfer->error == 0;
    if (first) {
        transfer->error = error;
        transfer->side = side;
        transfer->error_offset = offset;
        atomic_store(&transfer->stopping, true);
    }
    pthread_mutex_unlock(&transfer->lock);
    /* Other workers may sit on operations that have to be interrupted. */
    if (first)
        tz_mover_wake_all(transfer->mover);
}

static void record_end(tz_transfer *transfer, int error)
{
    tz_mover *mover = transfer->mover;

    pthread_mutex_lock(&transfer->lock);
    if (error < 0) {
        transfer->error = error;
        transfer->side = TZ_SIDE_SINK;
        transfer->error_offset = transfer->size;
    }
    pthread_mutex_unlock(&transfer->lock);
    if (atomic_load(&transfer->started_ns))
        atomic_fetch_sub(&mover->running, 1);
    atomic_store(&transfer->ended_ns, tz_mover_now());
    pthread_mutex_lock(&mover->lock);
    atomic_store(&transfer->ended, true);
    mover->ended++;
    pthread_cond_broadcast(&mover->changed);
    pthread_mutex_unlock(&mover->lock);
    tz_mover_wake_all(mover);
}

void tz_transfer_settle(tz_transfer *transfer)
{
    bool mine, good;
    int rc = 0;

    pthread_mutex_lock(&transfer->lock);
    good = transfer->stored == transfer->chunks && transfer->error == 0;
    mine = !transfer->ending && transfer->active == 0 && (good || atomic_load(&transfer->stopping));
    if (mine)
        transfer->ending = true;
    pthread_mutex_unlock(&transfer->lock);
    if (!mine)
        return;
    if (good && transfer->sink->ops->finish)
        rc = transfer->sink->ops->finish(transfer->sink);
    if (transfer->area)
        tz_area_release(transfer->area);
    transfer->area = NULL;
    record_end(transfer, rc);
}

void tz_transfer_leave(tz_transfer *transfer, bool stored)
{
    pthread_mutex_lock(&transfer->lock);
    assert(transfer->active > 0);
    transfer->active--;
    transfer->stored += stored;
    pthread_mutex_unlock(&transfer->lock);
    tz_transfer_settle(transfer);
}

void tz_transfer_destroy(tz_transfer *transfer)
{
    assert(transfer->active == 0);
    if (transfer->area)
        tz_area_release(transfer->area);
    tz_source_destroy(transfer->source);
    tz_sink_destroy(transfer->sink);
    pthread_mutex_destroy(&transfer->lock);
    free(transfer->claimed_memory);
    free(transfer->outcomes);
    free(transfer);
}
