/* SPDX-License-Identifier: Apache-2.0
 *
 * Volumes: opening and locking, reads, flushes, and the end of every request.
 */
#include "volume_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"

/* qemu's tools take byte-range locks from 100 to 299 for what they do and what they forbid others; a write lock
 * over all of them tells qemu-img that the image is in use, and tells us when qemu uses it. */
static int lock_against_qemu(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? -EBUSY : 0; /* no locks on this file system: flock has to do */
}

static int lock_file(const tz_file *file)
{
    if (flock(file->fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    /* A byte-range write lock needs a descriptor that can write. */
    return file->writable ? lock_against_qemu(file->fd) : 0;
}

static int open_file(tz_volume *volume, const tz_volume_config *config)
{
    unsigned flags = 0;
    int rc;

    if (!config->read_only)
        flags |= TZ_FILE_WRITE;
    if (config->buffered)
        flags |= TZ_FILE_BUFFERED;
    if (config->lock)
        flags |= TZ_FILE_EXCL;
    rc = tz_file_open(&volume->file, config->path, flags);
    if (rc < 0)
        return rc;
    rc = volume->file.size == 0 ? -EINVAL : config->lock ? lock_file(&volume->file) : 0;
    if (rc < 0)
        tz_file_close(&volume->file);
    return rc;
}

static int map_buffers(tz_volume *volume)
{
    const int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;

    volume->zeros = mmap(NULL, TZ_PIECE_ZEROS, PROT_READ, flags, -1, 0);
    volume->bounce_memory = mmap(NULL, TZ_BOUNCES * TZ_BOUNCE_BYTES, prot, flags | MAP_POPULATE, -1, 0);
    if (volume->zeros == MAP_FAILED || volume->bounce_memory == MAP_FAILED)
        return -ENOMEM;
    for (uint32_t i = 0; i < TZ_BOUNCES; i++)
        volume->bounces[i] = (char *)volume->bounce_memory + i * TZ_BOUNCE_BYTES;
    volume->bounces_free = TZ_BOUNCES;
    return 0;
}

static void unmap_buffers(tz_volume *volume)
{
    if (volume->zeros != MAP_FAILED)
        munmap(volume->zeros, TZ_PIECE_ZEROS);
    if (volume->bounce_memory != MAP_FAILED)
        munmap(volume->bounce_memory, TZ_BOUNCES * TZ_BOUNCE_BYTES);
}

int tz_volume_open(tz_volume **out, tz_io *io, const tz_volume_config *config)
{
    tz_volume *volume = calloc(1, sizeof(*volume));
    int rc;

    if (!volume)
        return -ENOMEM;
    volume->io = io;
    volume->read_only = config->read_only;
    volume->faults = config->faults;
    rc = open_file(volume, config);
    if (rc < 0)
        goto fail;
    volume->zero_align = tz_volume_zero_align(&volume->file);
    rc = map_buffers(volume);
    if (rc < 0) {
        unmap_buffers(volume);
        tz_file_close(&volume->file);
        goto fail;
    }
    tz_gate_init(volume);
    tz_recent_init(&volume->recent, tz_now_coarse_ns());
    *out = volume;
    return 0;
fail:
    free(volume);
    return rc;
}

void tz_volume_close(tz_volume *volume)
{
    if (!volume)
        return;
    assert(tz_volume_is_idle(volume) && !volume->gate.sessions);
    unmap_buffers(volume);
    tz_file_close(&volume->file); /* and with it the locks */
    free(volume);
}

const tz_file *tz_volume_file(const tz_volume *volume)
{
    return &volume->file;
}

tz_io *tz_volume_io(const tz_volume *volume)
{
    return volume->io;
}

bool tz_volume_is_idle(const tz_volume *volume)
{
    return volume->requests == 0 && tz_gate_is_idle(&volume->gate);
}

void tz_volume_stats_get(const tz_volume *volume, tz_volume_stats *out)
{
    *out = volume->stats;
    out->held = volume->gate.held.count;
    out->in_flight = volume->gate.in_flight;
    for (const tz_session *s = volume->gate.sessions; s; s = tz_gate_next_session(s))
        out->sessions++;
    tz_volume_load_stats(volume, out);
}

void tz_volume_recent_writes_get(const tz_volume *volume, tz_recent_writes *out)
{
    tz_recent_get(&volume->recent, tz_now_coarse_ns(), out);
}

/* ---- the end of a request ---- */

static void count(tz_volume *volume, const tz_request *request)
{
    tz_volume_stats *stats = &volume->stats;

    switch (request->kind) {
    case TZ_REQUEST_READ:
        stats->reads++;
        stats->read_bytes += request->length;
        break;
    case TZ_REQUEST_WRITE:
        stats->writes++;
        stats->written_bytes += request->length;
        break;
    case TZ_REQUEST_FLUSH:
        stats->flushes++;
        break;
    case TZ_REQUEST_TRIM:
        stats->trims++;
        break;
    case TZ_REQUEST_ZERO:
        stats->zeroes++;
        break;
    case TZ_REQUEST_CACHE:
    case TZ_REQUEST_BLOCK_STATUS:
        break;
    }
}

void tz_volume_finish(tz_volume *volume, tz_request *request, int64_t result)
{
    assert(!request->volume.bounce);
    volume->requests--;
    tz_volume_load_ended(volume, request, result >= 0);
    if (result < 0)
        volume->stats.errors++;
    else
        count(volume, request);
    request->done(request, result < 0 ? result : 0);
}

/* ---- bounce buffers ---- */

void *tz_volume_take_bounce(tz_volume *volume)
{
    return volume->bounces_free ? volume->bounces[--volume->bounces_free] : NULL;
}

void tz_volume_give_bounce(tz_volume *volume, tz_request *request)
{
    tz_request *waiting = volume->starved.first;
    void *bounce = request->volume.bounce;

    request->volume.bounce = NULL;
    if (!bounce)
        return;
    if (!waiting) {
        volume->bounces[volume->bounces_free++] = bounce;
        return;
    }
    tz_queue_remove(&volume->starved, waiting);
    waiting->volume.bounce = bounce;
    if (waiting->kind == TZ_REQUEST_READ)
        tz_volume_read_piece(volume, waiting);
    else
        tz_volume_write_piece(volume, waiting);
}

/* ---- reads ---- */

static bool fits(const tz_file *file, const tz_request *request)
{
    return ((request->offset | request->length) & (file->offset_align - 1)) == 0 &&
           ((uintptr_t)request->buffer & (file->memory_align - 1)) == 0;
}

static void on_read(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;

    /* Less than asked means that somebody made the file shorter under us. */
    if (result >= 0 && (uint64_t)result < request->length)
        result = -EIO;
    tz_volume_finish(request->volume.volume, request, result);
}

static void on_bounced_read(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;
    tz_volume *volume = request->volume.volume;
    uint64_t from = request->volume.from, to = request->volume.to;

    if (result >= 0 && (uint64_t)result < request->volume.end - request->volume.at)
        result = -EIO;
    if (result < 0) {
        tz_volume_give_bounce(volume, request);
        tz_volume_finish(volume, request, result);
        return;
    }
    memcpy((char *)request->buffer + (from - request->offset),
           (char *)request->volume.bounce + (from - request->volume.at), to - from);
    request->volume.cursor = to;
    if (to < request->offset + request->length) {
        tz_volume_read_piece(volume, request);
        return;
    }
    tz_volume_give_bounce(volume, request);
    tz_volume_finish(volume, request, 0);
}

void tz_volume_read_piece(tz_volume *volume, tz_request *request)
{
    const uint64_t align = volume->file.offset_align, stop = request->offset + request->length;
    uint64_t from = request->volume.cursor, at = tz_align_down(from, align);

    request->volume.from = from;
    request->volume.at = at;
    request->volume.to = tz_min_u64(stop, at + TZ_BOUNCE_BYTES);
    request->volume.end = tz_align_up(request->volume.to, align);
    request->volume.op.user = request;
    tz_volume_read_file(volume, request, request->volume.bounce, request->volume.end - at, at, on_bounced_read);
}

static void submit_read(tz_volume *volume, tz_request *request)
{
    request->volume.op.user = request;
    if (fits(&volume->file, request)) {
        tz_volume_read_file(volume, request, request->buffer, request->length, request->offset, on_read);
        return;
    }
    request->volume.bounce = tz_volume_take_bounce(volume);
    if (request->volume.bounce)
        tz_volume_read_piece(volume, request);
    else
        tz_queue_push(&volume->starved, request);
}

/* ---- submission ---- */

static void on_flush(tz_io_op *op, int64_t result)
{
    tz_request *request = op->user;

    tz_volume_finish(request->volume.volume, request, result);
}

static void submit_flush(tz_volume *volume, tz_request *request)
{
    tz_io_op *op = &request->volume.op;

    if (volume->read_only) {
        tz_volume_finish(volume, request, 0);
        return;
    }
    op->opcode = TZ_IO_DATASYNC;
    op->fd = volume->file.fd;
    op->done = on_flush;
    op->user = request;
    tz_io_submit(volume->io, op);
}

static void submit_cache(tz_volume *volume, tz_request *request)
{
    /* Advice: nothing is lost when it is not taken. Nor is it given where this thread might have to wait for a server. */
    if (!volume->file.direct && !volume->file.aside)
        (void)posix_fadvise(volume->file.fd, (off_t)request->offset, (off_t)request->length, POSIX_FADV_WILLNEED);
    tz_volume_finish(volume, request, 0);
}

void tz_volume_submit(tz_volume *volume, tz_request *request)
{
    assert(request->kind == TZ_REQUEST_FLUSH ||
           (request->offset <= volume->file.size && request->length <= volume->file.size - request->offset));
    memset(&request->volume, 0, sizeof(request->volume));
    request->volume.volume = volume;
    request->volume.cursor = request->offset;
    volume->requests++;

    if (request->kind != TZ_REQUEST_FLUSH && request->length == 0) {
        tz_volume_finish(volume, request, 0);
        return;
    }
    tz_volume_load_arrived(volume, request);
    switch (request->kind) {
    case TZ_REQUEST_READ:
        submit_read(volume, request);
        break;
    case TZ_REQUEST_FLUSH:
        submit_flush(volume, request);
        break;
    case TZ_REQUEST_CACHE:
        submit_cache(volume, request);
        break;
    case TZ_REQUEST_BLOCK_STATUS:
        tz_volume_finish(volume, request, tz_volume_block_status(volume, request));
        break;
    case TZ_REQUEST_WRITE:
    case TZ_REQUEST_TRIM:
    case TZ_REQUEST_ZERO:
        if (volume->read_only) {
            tz_volume_finish(volume, request, -EPERM);
            break;
        }
        tz_recent_note(&volume->recent, tz_now_coarse_ns(), request->offset, request->length);
        tz_volume_update(volume, request);
        break;
    }
}
