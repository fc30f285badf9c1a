/* SPDX-License-Identifier: Apache-2.0
 *
 * The mover's life: create, add, start, wait, cancel, report, destroy.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

/* Where depth is not given: what a disk needs, and how far a source with latency may go (depth.c). */
#define TZ_DEPTH_LEAST 8
#define TZ_DEPTH_MOST  32
#define TZ_DEPTH_MAX   256
#define TZ_WORKERS_MAX 64

uint64_t tz_mover_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

int tz_mover_file_open(tz_file *out, int fd, unsigned flags)
{
    char path[32];
    tz_file file;
    int rc;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    rc = tz_file_open(&file, path, flags);
    if (rc == 0 && file.direct && (file.memory_align > TZ_FRAME_ALIGN || file.offset_align > TZ_FRAME_ALIGN)) {
        tz_file_close(&file);
        rc = tz_file_open(&file, path, flags | TZ_FILE_BUFFERED);
    }
    if (rc == 0)
        *out = file;
    return rc;
}

uint64_t tz_source_size(const tz_source *source)
{
    return source->size;
}

bool tz_source_direct(const tz_source *source)
{
    return source->ops->direct && source->ops->direct(source);
}

void tz_source_destroy(tz_source *source)
{
    if (source)
        source->ops->destroy(source);
}

void tz_sink_destroy(tz_sink *sink)
{
    if (sink)
        sink->ops->destroy(sink);
}

/* Chunks in flight that a worker may come to have: more than there are frames would only wait for one. */
static uint32_t most_depth(const tz_mover_config *config, uint32_t frames)
{
    if (config->depth)
        return config->depth;
    return (uint32_t)tz_min_u64(TZ_DEPTH_MOST, tz_max_u64(TZ_DEPTH_LEAST, frames / config->workers));
}

static int check_config(tz_mover_config *config, tz_bufspace *space, uint32_t *most)
{
    tz_bufspace_stats stats;

    tz_bufspace_stats_get(space, &stats);
    config->workers = config->workers ? config->workers : 1;
    *most = most_depth(config, stats.frames);
    config->depth = config->depth ? config->depth : TZ_DEPTH_LEAST;
    if (config->workers > TZ_WORKERS_MAX || config->depth > TZ_DEPTH_MAX)
        return -EINVAL;
    if (config->chunk_size == 0 || config->chunk_size % TZ_FRAME_ALIGN || config->chunk_size > TZ_CHUNK_MAX ||
        config->chunk_size > stats.frame_size)
        return -EINVAL;
    return 0;
}

static int create_workers(tz_mover *mover)
{
    mover->workers = calloc(mover->config.workers, sizeof(*mover->workers));
    if (!mover->workers)
        return -ENOMEM;
    for (uint32_t i = 0; i < mover->config.workers; i++) {
        int rc = tz_worker_create(&mover->workers[i], mover, i);

        if (rc < 0) {
            while (i-- > 0)
                tz_worker_destroy(&mover->workers[i]);
            free(mover->workers);
            return rc;
        }
    }
    return 0;
}

int tz_mover_create(tz_mover **out, tz_bufspace *space, const tz_mover_config *config)
{
    tz_mover *mover = calloc(1, sizeof(*mover));
    pthread_condattr_t monotonic;
    tz_bufspace_stats stats;
    int rc;

    if (!mover)
        return -ENOMEM;
    mover->config = *config;
    mover->space = space;
    rc = check_config(&mover->config, space, &mover->chunks_each);
    if (rc == 0)
        rc = create_workers(mover);
    if (rc < 0) {
        free(mover);
        return rc;
    }
    tz_bufspace_stats_get(space, &stats);
    tz_pace_create(&mover->pace, &mover->config, stats.frames);
    tz_depth_init(&mover->depth, mover->config.depth, mover->chunks_each, mover->config.workers);
    pthread_mutex_init(&mover->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&mover->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = mover;
    return 0;
}

tz_io_kind tz_mover_engine(const tz_mover *mover)
{
    return tz_io_engine(mover->workers[0].io);
}

int tz_mover_add(tz_mover *mover, tz_source *source, tz_sink *sink, tz_index_entry *index)
{
    tz_transfer **grown;
    int rc;

    if (mover->started)
        return -EBUSY;
    grown = realloc(mover->transfers, (mover->count + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    mover->transfers = grown;
    rc = tz_transfer_create(&grown[mover->count], mover, source, sink, index);
    return rc < 0 ? rc : (int)mover->count++;
}

int tz_mover_start(tz_mover *mover)
{
    int rc = 0;

    if (mover->started)
        return -EBUSY;
    mover->started = true;
    rc = tz_pace_prepare(mover);
    for (uint32_t i = 0; i < mover->count && rc == 0; i++)
        rc = tz_transfer_request(mover->transfers[i]);
    for (uint32_t i = 0; i < mover->config.workers && rc == 0; i++)
        rc = tz_worker_prepare(&mover->workers[i]);
    for (uint32_t i = 0; i < mover->config.workers && rc == 0; i++)
        rc = tz_worker_start(&mover->workers[i]);
    if (rc < 0)
        tz_mover_cancel(mover);
    return rc;
}

int tz_mover_wait(tz_mover *mover, int64_t timeout_ns)
{
    uint64_t until = tz_mover_now() + (uint64_t)(timeout_ns > 0 ? timeout_ns : 0);
    struct timespec at = {(time_t)(until / 1000000000), (long)(until % 1000000000)};
    int rc = 0, ended;

    pthread_mutex_lock(&mover->lock);
    while (mover->ended < mover->count && rc != ETIMEDOUT) {
        if (timeout_ns < 0)
            rc = pthread_cond_wait(&mover->changed, &mover->lock);
        else
            rc = pthread_cond_timedwait(&mover->changed, &mover->lock, &at);
    }
    ended = mover->ended == mover->count;
    pthread_mutex_unlock(&mover->lock);
    return ended;
}

void tz_mover_cancel(tz_mover *mover)
{
    for (uint32_t i = 0; i < mover->count; i++)
        tz_transfer_fail(mover->transfers[i], -ECANCELED, TZ_SIDE_NONE, 0);
    /* Without threads nobody else performs the end. */
    if (!mover->workers[0].running)
        for (uint32_t i = 0; i < mover->count; i++)
            tz_transfer_settle(mover->transfers[i]);
}

void tz_mover_rest(tz_mover *mover, bool rests)
{
    if (atomic_exchange(&mover->pace.waiting, rests) != rests && mover->started)
        tz_mover_wake_all(mover);
}

void tz_mover_speed_get(tz_mover *mover, tz_mover_speed *out)
{
    tz_pace *pace = &mover->pace;

    *out = (tz_mover_speed){.depth = atomic_load(&pace->depth),
                            .piece = atomic_load(&pace->piece),
                            .rate = atomic_load(&pace->piece_rate),
                            .yields = atomic_load(&pace->slowed),
                            .rests = atomic_load(&pace->waiting)};
}

static uint64_t get(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void tz_mover_report_get(tz_mover *mover, uint32_t number, tz_transfer_report *out)
{
    tz_transfer *transfer = mover->transfers[number];
    tz_transfer_report report = {.size = transfer->size, .chunks = transfer->chunks};

    /* done first: what is read afterwards is then final. */
    report.done = atomic_load(&transfer->ended);
    report.touched = atomic_load(&transfer->touched);
    pthread_mutex_lock(&transfer->lock);
    report.error = transfer->error;
    report.side = transfer->side;
    report.error_offset = transfer->error_offset;
    pthread_mutex_unlock(&transfer->lock);
    report.bytes_done = get(&transfer->bytes_done);
    report.bytes_read = get(&transfer->bytes_read);
    report.bytes_written = get(&transfer->bytes_written);
    report.chunks_zero = get(&transfer->chunks_zero);
    report.chunks_direct = get(&transfer->chunks_by_origin[TZ_ORIGIN_DIRECT]);
    report.chunks_sidefile = get(&transfer->chunks_by_origin[TZ_ORIGIN_SIDEFILE]);
    report.chunks_mixed = get(&transfer->chunks_by_origin[TZ_ORIGIN_MIXED]);
    report.tracks_from_sidefile = get(&transfer->tracks_taken);
    report.chunks_ahead = get(&transfer->chunks_ahead);
    report.chunks_kept = get(&transfer->chunks_kept);
    report.bytes_kept = get(&transfer->bytes_kept);
    report.chunks_damaged = get(&transfer->chunks_damaged);
    report.started_ns = get(&transfer->started_ns);
    report.ended_ns = get(&transfer->ended_ns);
    if (transfer->source->ops->activity) {
        tz_activity activity;

        transfer->source->ops->activity(transfer->source, &activity);
        report.pressure = activity.used;
    }
    *out = report;
}

uint64_t tz_mover_bytes_done(tz_mover *mover)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < mover->count; i++)
        sum += get(&mover->transfers[i]->bytes_done);
    return sum;
}

const uint8_t *tz_mover_outcomes(const tz_mover *mover, uint32_t number)
{
    return mover->transfers[number]->outcomes;
}

uint64_t tz_mover_waiting(tz_mover *mover, uint32_t *transfer, enum tz_transfer_side *side)
{
    tz_chunk *oldest = NULL;
    uint64_t since = UINT64_MAX, now = tz_mover_now();

    for (uint32_t i = 0; i < mover->config.workers; i++)
        for (uint32_t j = 0; j < mover->chunks_each; j++) {
            tz_chunk *chunk = &mover->workers[i].chunks[j];
            uint64_t begun = atomic_load_explicit(&chunk->since_ns, memory_order_acquire);

            if (begun && begun < since) {
                since = begun;
                oldest = chunk;
            }
        }
    if (!oldest)
        return 0;
    *side = (enum tz_transfer_side)atomic_load_explicit(&oldest->waiting_side, memory_order_relaxed);
    *transfer = 0;
    for (uint32_t i = 0; i < mover->count; i++)
        if (mover->transfers[i] == atomic_load_explicit(&oldest->waiting, memory_order_relaxed))
            *transfer = i;
    return now > since ? now - since : 1;
}

bool tz_mover_waits_for(tz_mover *mover, uint32_t number, enum tz_transfer_side side)
{
    for (uint32_t i = 0; i < mover->config.workers; i++)
        for (uint32_t j = 0; j < mover->chunks_each; j++) {
            tz_chunk *chunk = &mover->workers[i].chunks[j];

            if (atomic_load_explicit(&chunk->since_ns, memory_order_acquire) &&
                atomic_load_explicit(&chunk->waiting, memory_order_relaxed) == mover->transfers[number] &&
                atomic_load_explicit(&chunk->waiting_side, memory_order_relaxed) == (uint32_t)side)
                return true;
        }
    return false;
}

int tz_mover_sync(tz_mover *mover, uint32_t number)
{
    tz_transfer *transfer = mover->transfers[number];

    if (!atomic_load(&transfer->ended))
        return -EBUSY;
    if (transfer->error < 0)
        return transfer->error;
    return transfer->sink->ops->sync ? transfer->sink->ops->sync(transfer->sink) : 0;
}

void tz_mover_destroy(tz_mover *mover)
{
    if (!mover)
        return;
    if (mover->started) {
        tz_mover_cancel(mover);
        tz_mover_wait(mover, -1);
    }
    for (uint32_t i = 0; i < mover->config.workers; i++)
        tz_worker_join(&mover->workers[i]);
    for (uint32_t i = 0; i < mover->config.workers; i++)
        tz_worker_destroy(&mover->workers[i]);
    for (uint32_t i = 0; i < mover->count; i++)
        tz_transfer_destroy(mover->transfers[i]);
    free(mover->workers);
    free(mover->transfers);
    tz_pace_destroy(&mover->pace);
    tz_depth_fini(&mover->depth);
    pthread_mutex_destroy(&mover->lock);
    pthread_cond_destroy(&mover->changed);
    free(mover);
}
