/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of a chunk on its worker.
 *
 *   FREE ──start──▶ LOADING ──▶ LOADED ──▶ STORING ──▶ STORED ──▶ FREE
 *            │       │  ▲  ▲      │ ▲         │ ▲        index entry, counters
 *            ▼       └──┘  │      ▼ │         └─┘
 *         LOOKING ─────────┘    PARKED     operations
 *         (delta) differs      (ordered    (target)
 *            └── same ──▶ FREE  sinks)
 *
 * LOADING, LOOKING: operations on the volume and the sidefile's tier, or on packs; on the target.
 * LOADING ends with T0 content in the frame, or the knowledge that all of it is zero. LOADED takes
 * digest and zero detection in one pass. Damage of a source that is salvaged leads to STORING as well, with zeros. Another
 * error, or a transfer that stops, leads from every state to FREE, but only once the operation under way has ended: the
 * kernel may write into the frame until then. The volume is never read again from LOADED on.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

static void advance(tz_chunk *chunk);

void tz_chunk_asks(tz_chunk *chunk)
{
    enum tz_transfer_side side = chunk->state == TZ_CHUNK_LOADING ? TZ_SIDE_SOURCE : TZ_SIDE_SINK;

    atomic_store_explicit(&chunk->waiting, chunk->transfer, memory_order_relaxed);
    atomic_store_explicit(&chunk->waiting_side, side, memory_order_relaxed);
    atomic_store_explicit(&chunk->since_ns, tz_mover_now(), memory_order_release);
}

void tz_chunk_told(tz_chunk *chunk)
{
    atomic_store_explicit(&chunk->since_ns, 0, memory_order_relaxed);
}

/* An operation on a device begins. */
static void begin_wait(tz_chunk *chunk)
{
    chunk->pending = true;
    tz_chunk_asks(chunk);
}

static void op_done(tz_io_op *op, int64_t result)
{
    tz_chunk *chunk = op->user;

    chunk->pending = false;
    chunk->interruptible = false;
    tz_chunk_told(chunk);
    chunk->result = result;
    /* The engine goes on after these by itself; one more try is for a target that says so at length. */
    if (op->opcode == TZ_IO_WRITE && (result == -EINTR || result == -EAGAIN) && !chunk->retried) {
        chunk->retried = true;
        chunk->iov[0] = chunk->again;
        begin_wait(chunk);
        tz_io_submit(chunk->worker->io, op);
        return;
    }
    advance(chunk);
}

static void pause_over(tz_io_op *op, int64_t result)
{
    tz_chunk *chunk = op->user;

    (void)result;
    chunk->pausing = chunk->interruptible = false;
    if (!atomic_load(&chunk->transfer->stopping)) {
        begin_wait(chunk);
        tz_io_submit(chunk->worker->io, &chunk->op);
        return;
    }
    chunk->pending = false;
    advance(chunk);
}

/* Begins the operation when the pace lets it. */
static void begin(tz_chunk *chunk, uint64_t bytes)
{
    uint64_t wait = tz_pace_take(&chunk->worker->mover->pace, bytes);

    if (wait == 0) {
        begin_wait(chunk);
        tz_io_submit(chunk->worker->io, &chunk->op);
        return;
    }
    chunk->pending = true;
    chunk->pause = (tz_io_op){.opcode = TZ_IO_TIMEOUT, .length = wait, .done = pause_over, .user = chunk};
    chunk->pausing = chunk->interruptible = true;
    tz_io_submit(chunk->worker->io, &chunk->pause);
}

/* A user-space file system that does not answer keeps who submits to it, and with him all other transfers. */
static void begin_transfer(tz_chunk *chunk, tz_io_opcode opcode, const tz_file *file, uint32_t iovs, uint64_t offset)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < iovs; i++)
        bytes += chunk->iov[i].iov_len;
    chunk->op = (tz_io_op){.opcode = opcode,
                           .fd = file->fd,
                           .arg = file->aside ? TZ_IO_ASIDE : 0,
                           .offset = offset,
                           .iov = chunk->iov,
                           .iovs = iovs,
                           .done = op_done,
                           .user = chunk};
    begin(chunk, bytes);
}

void tz_chunk_read(tz_chunk *chunk, const tz_file *file, void *buffer, size_t length, uint64_t offset)
{
    chunk->iov[0] = (struct iovec){buffer, length};
    begin_transfer(chunk, TZ_IO_READ, file, 1, offset);
}

void tz_chunk_readv(tz_chunk *chunk, const tz_file *file, uint32_t iovs, uint64_t offset)
{
    begin_transfer(chunk, TZ_IO_READ, file, iovs, offset);
}

void tz_chunk_write(tz_chunk *chunk, const tz_file *file, void *buffer, size_t length, uint64_t offset)
{
    chunk->retried = false;
    chunk->iov[0] = chunk->again = (struct iovec){buffer, length};
    begin_transfer(chunk, TZ_IO_WRITE, file, 1, offset);
}

static void submit_range(tz_chunk *chunk, tz_io_opcode opcode, int fd, uint64_t offset, uint64_t length, uint32_t arg)
{
    chunk->op = (tz_io_op){
        .opcode = opcode, .fd = fd, .offset = offset, .length = length, .arg = arg, .done = op_done, .user = chunk};
    tz_io_submit(chunk->worker->io, &chunk->op);
}

void tz_chunk_range(tz_chunk *chunk, tz_io_opcode opcode, int fd, uint64_t offset, uint64_t length, uint32_t arg)
{
    begin_wait(chunk);
    submit_range(chunk, opcode, fd, offset, length, arg);
}

/* A reader may take its time. */
void tz_chunk_poll(tz_chunk *chunk, int fd, uint32_t events)
{
    chunk->pending = true;
    chunk->interruptible = true;
    submit_range(chunk, TZ_IO_POLL, fd, 0, 0, events);
}

void tz_chunk_materialize(tz_chunk *chunk, uint32_t pad)
{
    uint32_t padded = (uint32_t)tz_align_up(chunk->length, pad);

    if (chunk->zero)
        memset(chunk->frame, 0, chunk->length);
    chunk->zero = false;
    memset(chunk->frame + chunk->length, 0, padded - chunk->length);
}

/* From claim to end: the frame goes back, the slot is free. */
static void retire(tz_chunk *chunk, bool stored)
{
    tz_transfer *transfer = chunk->transfer;
    tz_worker *worker = chunk->worker;

    assert(!chunk->pending);
    tz_area_give(transfer->area, chunk->frame);
    chunk->frame = NULL;
    chunk->state = TZ_CHUNK_FREE;
    worker->in_flight--;
    tz_transfer_leave(transfer, stored);
}

static void fail(tz_chunk *chunk, int error, enum tz_transfer_side side, uint64_t offset)
{
    tz_transfer_fail(chunk->transfer, error, side, offset);
    tz_worker_interrupt(chunk->worker, chunk->transfer);
    retire(chunk, false);
}

/* Digest and zero detection while the chunk is in cache; the check against what the source knows. */
static int identify(tz_chunk *chunk)
{
    tz_source *source = chunk->transfer->source;
    tz_index_entry *entry = &chunk->entry;

    if (chunk->zero) {
        tz_digest_zeros(&entry->digest, chunk->length);
    } else {
        chunk->zero = tz_digest_chunk(&entry->digest, chunk->frame, chunk->length);
    }
    entry->codec = chunk->zero ? TZ_CODEC_ZERO : TZ_CODEC_RAW;
    return source->ops->check ? source->ops->check(source, chunk, &entry->digest) : 0;
}

static void account_content(tz_transfer *transfer, const tz_chunk *chunk)
{
    if (transfer->index)
        transfer->index[chunk->number] = chunk->entry;
    if (chunk->entry.codec == TZ_CODEC_ZERO)
        atomic_fetch_add_explicit(&transfer->chunks_zero, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&transfer->chunks_by_origin[chunk->entry.origin], 1, memory_order_relaxed);
}

static void account(tz_chunk *chunk)
{
    tz_transfer *transfer = chunk->transfer;

    if (transfer->outcomes)
        transfer->outcomes[chunk->number] = chunk->damage ? chunk->damage : TZ_OUTCOME_STORED;
    if (chunk->damage)
        atomic_fetch_add_explicit(&transfer->chunks_damaged, 1, memory_order_relaxed);
    else
        account_content(transfer, chunk);
    atomic_fetch_add_explicit(&transfer->tracks_taken, chunk->taken, memory_order_relaxed);
    atomic_fetch_add_explicit(&transfer->bytes_read, chunk->read, memory_order_relaxed);
    atomic_fetch_add_explicit(&transfer->bytes_written, chunk->written, memory_order_relaxed);
    atomic_fetch_add_explicit(&transfer->bytes_done, chunk->length, memory_order_relaxed);
}

/* An ordered sink has stored a chunk: the next one may be waiting. */
static void unpark(tz_worker *worker, tz_transfer *transfer)
{
    for (uint32_t i = 0; i < worker->mover->chunks_each; i++) {
        tz_chunk *chunk = &worker->chunks[i];

        if (chunk->state == TZ_CHUNK_PARKED && chunk->transfer == transfer && chunk->number == transfer->in_order) {
            chunk->state = TZ_CHUNK_STORING;
            advance(chunk);
            return;
        }
    }
}

/* The content is known: on to the sink. */
static void hand_over(tz_chunk *chunk)
{
    tz_transfer *transfer = chunk->transfer;

    /* What was not read costs no tokens. */
    if (chunk->read < chunk->length)
        tz_pace_refund(&chunk->worker->mover->pace, chunk->length - chunk->read);
    chunk->phase = 0;
    chunk->state = transfer->sink->ops->ordered ? TZ_CHUNK_PARKED : TZ_CHUNK_STORING;
    if (chunk->state == TZ_CHUNK_PARKED && chunk->number == transfer->in_order)
        chunk->state = TZ_CHUNK_STORING;
}

/* The source could not give the chunk. Where it is salvaged and this is damage, zeros take its place. */
static void not_loaded(tz_chunk *chunk, int error, uint64_t offset)
{
    if (!chunk->transfer->source->salvage || !chunk->damage) {
        fail(chunk, error, chunk->side, offset);
        return;
    }
    chunk->zero = true;
    hand_over(chunk);
    if (chunk->transfer->sink->keep)
        chunk->state = TZ_CHUNK_STORED;
}

static void loaded(tz_chunk *chunk)
{
    int rc = identify(chunk);

    if (rc < 0) {
        chunk->damage = TZ_OUTCOME_ALTERED;
        chunk->side = TZ_SIDE_SOURCE;
        not_loaded(chunk, rc, chunk->offset);
        return;
    }
    hand_over(chunk);
}

/* The target has the chunk already: neither read nor written. */
static void kept(tz_chunk *chunk)
{
    tz_transfer *transfer = chunk->transfer;

    transfer->outcomes[chunk->number] = TZ_OUTCOME_KEPT;
    atomic_fetch_add_explicit(&transfer->chunks_kept, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&transfer->bytes_kept, chunk->length, memory_order_relaxed);
    atomic_fetch_add_explicit(&transfer->bytes_done, chunk->length, memory_order_relaxed);
    tz_depth_observe(&chunk->worker->mover->depth, chunk->looked, tz_mover_now());
    retire(chunk, true);
}

/* After a look at the target, which may have failed: does it hold the chunk? If not, it is loaded into the same frame. */
static void looked(tz_chunk *chunk, int rc)
{
    tz_source *source = chunk->transfer->source;
    tz_digest digest;

    if (rc == TZ_STEP_DONE) {
        chunk->looked = chunk->length;
        chunk->blank = tz_digest_chunk(&digest, chunk->frame, chunk->length);
        if (source->ops->check(source, chunk, &digest) == 0) {
            kept(chunk);
            return;
        }
    }
    chunk->phase = 0;
    chunk->state = TZ_CHUNK_LOADING;
}

static void stored(tz_chunk *chunk)
{
    tz_transfer *transfer = chunk->transfer;
    tz_worker *worker = chunk->worker;

    account(chunk);
    tz_depth_observe(&worker->mover->depth,
                     (uint32_t)tz_min_u64(chunk->looked + chunk->read + chunk->written, UINT32_MAX), tz_mover_now());
    if (!transfer->sink->ops->ordered) {
        retire(chunk, true);
        return;
    }
    transfer->in_order++;
    /* The transfer outlives its last chunk: only destroy frees it. */
    retire(chunk, true);
    unpark(worker, transfer);
}

static void advance(tz_chunk *chunk)
{
    while (chunk->state != TZ_CHUNK_FREE) {
        tz_transfer *transfer = chunk->transfer;
        int rc = TZ_STEP_DONE;

        if (atomic_load(&transfer->stopping)) {
            retire(chunk, false);
            return;
        }
        /* An application that has come back meets no chunk that goes on as it began. */
        chunk->piece = tz_pace_piece(&chunk->worker->mover->pace);
        switch (chunk->state) {
        case TZ_CHUNK_LOOKING:
            rc = transfer->sink->ops->look(transfer->sink, chunk);
            if (rc != TZ_STEP_PENDING)
                looked(chunk, rc);
            break;
        case TZ_CHUNK_LOADING:
            rc = transfer->source->ops->load(transfer->source, chunk);
            if (rc < 0)
                not_loaded(chunk, rc, chunk->offset + chunk->at);
            else if (rc == TZ_STEP_DONE)
                chunk->state = TZ_CHUNK_LOADED;
            break;
        case TZ_CHUNK_LOADED:
            loaded(chunk);
            break;
        case TZ_CHUNK_PARKED:
            return;
        case TZ_CHUNK_STORING:
            /* Who has stopped the transfer and finds it untouched may rely on that, before it has ended, too. */
            atomic_store(&transfer->touched, true);
            if (atomic_load(&transfer->stopping)) {
                retire(chunk, false);
                return;
            }
            rc = transfer->sink->ops->store(transfer->sink, chunk);
            if (rc < 0)
                fail(chunk, rc, TZ_SIDE_SINK, chunk->offset);
            else if (rc == TZ_STEP_DONE)
                chunk->state = TZ_CHUNK_STORED;
            break;
        case TZ_CHUNK_STORED:
            stored(chunk);
            return;
        case TZ_CHUNK_FREE:
            return;
        }
        if (rc == TZ_STEP_PENDING)
            return;
    }
}

void tz_chunk_start(tz_chunk *chunk, tz_transfer *transfer, uint64_t number, void *frame)
{
    assert(chunk->state == TZ_CHUNK_FREE);
    chunk->transfer = transfer;
    chunk->number = number;
    chunk->offset = number * transfer->mover->config.chunk_size;
    chunk->length = tz_transfer_chunk_length(transfer, number);
    chunk->frame = frame;
    chunk->entry = (tz_index_entry){.origin = TZ_ORIGIN_DIRECT};
    chunk->zero = true;
    chunk->blank = false;
    chunk->damage = 0;
    chunk->phase = 0;
    chunk->at = chunk->run = chunk->ready = 0;
    chunk->alone = false;
    chunk->bounced.place = NULL;
    chunk->take_at = chunk->take_end = 0;
    chunk->tracks = chunk->taken = chunk->pushed = 0;
    chunk->side = TZ_SIDE_SOURCE;
    chunk->read = chunk->written = 0;
    chunk->looked = 0;
    chunk->state = transfer->sink->ops->look ? TZ_CHUNK_LOOKING : TZ_CHUNK_LOADING;
    chunk->worker->in_flight++;
    advance(chunk);
}

void tz_worker_interrupt(tz_worker *worker, tz_transfer *transfer)
{
    for (uint32_t i = 0; i < worker->mover->chunks_each; i++) {
        tz_chunk *chunk = &worker->chunks[i];

        if (chunk->transfer != transfer || chunk->state == TZ_CHUNK_FREE)
            continue;
        if (chunk->pending && chunk->interruptible)
            tz_io_cancel(worker->io, chunk->pausing ? &chunk->pause : &chunk->op);
        else if (chunk->state == TZ_CHUNK_PARKED)
            retire(chunk, false);
    }
}
