/* SPDX-License-Identifier: Apache-2.0
 *
 * Updates: a write, trim or zero is cut into pieces; each piece takes its block lock, passes the gate, is done
 * by one method, and makes room for the next.
 */
#include "volume_private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>

static void next_piece(tz_volume *volume, tz_request *request);

/* Where the request ends. A trim is advice, so it is cut down to whole blocks. */
static uint64_t request_stop(const tz_volume *volume, const tz_request *request)
{
    uint64_t stop = request->offset + request->length;

    return request->kind == TZ_REQUEST_TRIM ? tz_align_down(stop, volume->zero_align) : stop;
}

static const char *piece_bytes(const tz_request *request)
{
    return (const char *)request->buffer + (request->volume.from - request->offset);
}

/* Without a bounce buffer only what the file takes as it is. */
static bool needs_bounce(const tz_volume *volume, const tz_request *request)
{
    return request->volume.exclusive || request->kind == TZ_REQUEST_ZERO ||
           ((uintptr_t)piece_bytes(request) & (volume->file.memory_align - 1));
}

/* ---- planning a piece ---- */

static uint64_t piece_limit(const tz_volume *volume, uint32_t method)
{
    if (method == TZ_METHOD_ZEROS)
        return TZ_PIECE_ZEROS;
    return volume->gate.sessions ? TZ_PIECE_GATED : TZ_PIECE_FREE;
}

static uint32_t zero_method(const tz_volume *volume, const tz_request *request)
{
    const bool fast = request->flags & TZ_REQUEST_FAST_ZERO, device = volume->file.block_device;
    const uint32_t range = device ? TZ_METHOD_BLKZERO : TZ_METHOD_RANGE;

    if (!(request->flags & TZ_REQUEST_NO_HOLE) && !(volume->unsupported & 1u << TZ_METHOD_PUNCH))
        return TZ_METHOD_PUNCH;
    /* BLKZEROOUT may write zeros inside the kernel: not what a fast zero asks for. */
    if (!(fast && device) && !(volume->unsupported & 1u << range))
        return range;
    return TZ_METHOD_ZEROS;
}

static void plan_zero(const tz_volume *volume, tz_request *request, uint64_t stop)
{
    const uint64_t align = volume->zero_align, from = request->volume.cursor;
    const uint64_t body = tz_align_up(from, align), body_end = tz_align_down(stop, align);

    if (from < body || from >= body_end) { /* an edge: less than a block */
        request->volume.method = TZ_METHOD_WRITE;
        request->volume.to = tz_min_u64(stop, from < body ? body : from + align);
        return;
    }
    request->volume.method = zero_method(volume, request);
    request->volume.to = tz_min_u64(body_end, from + piece_limit(volume, request->volume.method));
}

static void plan_write(const tz_volume *volume, tz_request *request, uint64_t stop)
{
    const uint64_t align = volume->file.offset_align, from = request->volume.cursor;
    const uint64_t aligned_stop = tz_align_down(stop, align);

    request->volume.method = TZ_METHOD_WRITE;
    request->volume.to = tz_min_u64(stop, from + piece_limit(volume, TZ_METHOD_WRITE));
    if (from % align || aligned_stop <= from || (uintptr_t)piece_bytes(request) & (volume->file.memory_align - 1))
        request->volume.to = tz_min_u64(stop, tz_align_down(from, align) + TZ_BOUNCE_BYTES);
    else if (request->volume.to == stop)
        request->volume.to = aligned_stop; /* the unaligned rest is a piece of its own */
}

static void plan_piece(const tz_volume *volume, tz_request *request, uint64_t stop)
{
    const uint64_t align = volume->file.offset_align;

    request->volume.from = request->volume.cursor;
    request->volume.held_since_ns = request->volume.held_by = 0;
    request->volume.held = request->volume.delayed = false;
    switch (request->kind) {
    case TZ_REQUEST_WRITE:
        plan_write(volume, request, stop);
        break;
    case TZ_REQUEST_ZERO:
        plan_zero(volume, request, stop);
        break;
    default:
        request->volume.method = volume->file.block_device ? TZ_METHOD_DISCARD : TZ_METHOD_PUNCH;
        request->volume.to = tz_min_u64(stop, request->volume.from + piece_limit(volume, request->volume.method));
        break;
    }
    request->volume.at = tz_align_down(request->volume.from, align);
    request->volume.end = tz_align_up(request->volume.to, align);
    request->volume.exclusive = request->volume.at != request->volume.from || request->volume.end != request->volume.to;
}

void tz_volume_cut_piece(tz_volume *volume, tz_request *request)
{
    uint64_t limit = piece_limit(volume, request->volume.method);

    if (request->volume.end - request->volume.at <= limit)
        return;
    assert(!request->volume.exclusive); /* those are never longer than a bounce buffer */
    request->volume.to = request->volume.end = request->volume.from + limit;
}

/* ---- block locks (rule 8) ---- */

static bool excludes(const tz_request *a, const tz_request *b)
{
    return (a->volume.exclusive || b->volume.exclusive) && a->volume.at < b->volume.end && b->volume.at < a->volume.end;
}

/* Does an update under way, or one that has waited longer, exclude this one? */
static bool is_excluded(const tz_volume *volume, const tz_request *request)
{
    for (const tz_request *r = volume->active; r; r = r->volume.active_next)
        if (excludes(r, request))
            return true;
    for (const tz_request *r = volume->blocked.first; r && r != request; r = r->volume.next)
        if (excludes(r, request))
            return true;
    return false;
}

static void activate(tz_volume *volume, tz_request *request)
{
    request->volume.active_prev = NULL;
    request->volume.active_next = volume->active;
    if (volume->active)
        volume->active->volume.active_prev = request;
    volume->active = request;
    volume->exclusives += request->volume.exclusive;
    if (tz_gate_pass(volume, request))
        tz_volume_issue(volume, request);
}

static void deactivate(tz_volume *volume, tz_request *request)
{
    tz_request *next = request->volume.active_next, *prev = request->volume.active_prev;

    *(prev ? &prev->volume.active_next : &volume->active) = next;
    if (next)
        next->volume.active_prev = prev;
    volume->exclusives -= request->volume.exclusive;
}

static void lock_blocks(tz_volume *volume, tz_request *request)
{
    bool look = volume->exclusives || request->volume.exclusive || volume->blocked.count;

    if (look && !(volume->faults & TZ_FAULT_NO_BLOCK_LOCK) && is_excluded(volume, request))
        tz_queue_push(&volume->blocked, request);
    else
        activate(volume, request);
}

static void unlock_blocks(tz_volume *volume, tz_request *request)
{
    tz_request *next;

    deactivate(volume, request);
    for (tz_request *r = volume->blocked.first; r; r = next) {
        next = r->volume.next;
        if (is_excluded(volume, r))
            continue;
        tz_queue_remove(&volume->blocked, r);
        activate(volume, r);
    }
}

/* ---- the end of a piece ---- */

static void on_synced(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;

    tz_volume_finish(request->volume.volume, request, result);
}

static void complete(tz_volume *volume, tz_request *request)
{
    tz_io_op *op = &request->volume.op;

    if (!(request->flags & TZ_REQUEST_FUA)) {
        tz_volume_finish(volume, request, 0);
        return;
    }
    op->opcode = TZ_IO_DATASYNC;
    op->fd = volume->file.fd;
    op->done = on_synced;
    op->user = request;
    tz_io_submit(volume->io, op);
}

/* The order matters: the gate learns of the completion (and may form a T0) before the next piece is judged. */
static void end_piece(tz_volume *volume, tz_request *request, int64_t result)
{
    request->volume.cursor = request->volume.to;
    tz_volume_give_bounce(volume, request);
    unlock_blocks(volume, request);
    tz_gate_completed(volume);
    if (result < 0)
        tz_volume_finish(volume, request, result);
    else
        next_piece(volume, request);
}

/* ---- doing a piece ---- */

static void on_written(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;

    end_piece(request->volume.volume, request, result);
}

static void write_bounce(tz_volume *volume, tz_request *request)
{
    const uint64_t from = request->volume.from, at = request->volume.at, length = request->volume.to - from;
    char *place = (char *)request->volume.bounce + (from - at);

    if (request->kind == TZ_REQUEST_WRITE)
        memcpy(place, piece_bytes(request), length);
    else
        memset(place, 0, length);
    tz_volume_write_file(volume, request, request->volume.bounce, request->volume.end - at, at, on_written);
}

static bool edge_failed(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;
    tz_volume *volume = request->volume.volume;

    if (result == (int64_t)volume->file.offset_align)
        return false;
    end_piece(volume, request, result < 0 ? result : -EIO);
    return true;
}

static void on_last_edge(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;

    if (!edge_failed(op, result))
        write_bounce(request->volume.volume, request);
}

/* The last block, unless it is whole or was read as the first. */
static void read_last_edge(tz_volume *volume, tz_request *request)
{
    const uint64_t align = volume->file.offset_align, at = request->volume.at, last = request->volume.end - align;

    if (request->volume.end == request->volume.to || (last == at && at != request->volume.from)) {
        write_bounce(volume, request);
        return;
    }
    tz_volume_read_file(volume, request, (char *)request->volume.bounce + (last - at), align, last, on_last_edge);
}

static void on_first_edge(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;

    if (!edge_failed(op, result))
        read_last_edge(request->volume.volume, request);
}

void tz_volume_write_piece(tz_volume *volume, tz_request *request)
{
    if (request->volume.at == request->volume.from)
        read_last_edge(volume, request);
    else
        tz_volume_read_file(volume, request, request->volume.bounce, volume->file.offset_align, request->volume.at,
                            on_first_edge);
}

static void issue_write(tz_volume *volume, tz_request *request)
{
    const uint64_t length = request->volume.to - request->volume.from;

    if (!needs_bounce(volume, request)) {
        tz_volume_write_file(volume, request, piece_bytes(request), length, request->volume.from, on_written);
        return;
    }
    request->volume.bounce = tz_volume_take_bounce(volume);
    if (request->volume.bounce)
        tz_volume_write_piece(volume, request);
    else
        tz_queue_push(&volume->starved, request);
}

static void issue_range(tz_volume *volume, tz_request *request);

/* The file may refuse a method for good; then a trim has done its best, and zeroing is tried the next way. */
static void on_range(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;
    tz_volume *volume = request->volume.volume;

    if (result != -EOPNOTSUPP && result != -ENOSYS && result != -ENOTTY) {
        end_piece(volume, request, result);
        return;
    }
    volume->unsupported |= 1u << request->volume.method;
    if (request->kind == TZ_REQUEST_TRIM) {
        end_piece(volume, request, 0);
        return;
    }
    request->volume.method = zero_method(volume, request);
    if (request->volume.method == TZ_METHOD_ZEROS && request->flags & TZ_REQUEST_FAST_ZERO) {
        end_piece(volume, request, -ENOTSUP);
        return;
    }
    tz_volume_cut_piece(volume, request);
    issue_range(volume, request);
}

static void issue_range(tz_volume *volume, tz_request *request)
{
    tz_io_op *op = &request->volume.op;

    if (request->volume.method == TZ_METHOD_ZEROS) {
        tz_volume_write_file(volume, request, volume->zeros, request->volume.to - request->volume.from,
                             request->volume.from, on_written);
        return;
    }
    op->opcode = TZ_IO_FALLOCATE;
    op->arg = FALLOC_FL_KEEP_SIZE;
    if (request->volume.method == TZ_METHOD_PUNCH)
        op->arg |= FALLOC_FL_PUNCH_HOLE;
    else if (request->volume.method == TZ_METHOD_RANGE)
        op->arg |= FALLOC_FL_ZERO_RANGE;
    else {
        op->opcode = request->volume.method == TZ_METHOD_BLKZERO ? TZ_IO_BLKZERO : TZ_IO_BLKTRIM;
        op->arg = 0;
    }
    op->fd = volume->file.fd;
    op->offset = request->volume.from;
    op->length = request->volume.to - request->volume.from;
    op->done = on_range;
    tz_io_submit(volume->io, op);
}

void tz_volume_issue(tz_volume *volume, tz_request *request)
{
    request->volume.op.user = request;
    if (request->volume.method == TZ_METHOD_WRITE)
        issue_write(volume, request);
    else
        issue_range(volume, request);
}

/* ---- from piece to piece ---- */

/* What the file is known not to do needs no trip through the gate. */
static bool settled_without_io(tz_volume *volume, tz_request *request)
{
    if (request->kind == TZ_REQUEST_TRIM && volume->unsupported & 1u << request->volume.method) {
        complete(volume, request);
        return true;
    }
    if (request->volume.method == TZ_METHOD_ZEROS && request->flags & TZ_REQUEST_FAST_ZERO) {
        tz_volume_finish(volume, request, -ENOTSUP);
        return true;
    }
    return false;
}

static void next_piece(tz_volume *volume, tz_request *request)
{
    uint64_t stop = request_stop(volume, request);

    if (request->volume.cursor >= stop) {
        complete(volume, request);
        return;
    }
    plan_piece(volume, request, stop);
    if (!settled_without_io(volume, request))
        lock_blocks(volume, request);
}

void tz_volume_update(tz_volume *volume, tz_request *request)
{
    if (request->kind == TZ_REQUEST_TRIM)
        request->volume.cursor = tz_align_up(request->offset, volume->zero_align);
    next_piece(volume, request);
}
