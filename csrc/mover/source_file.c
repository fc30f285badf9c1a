/* SPDX-License-Identifier: Apache-2.0
 *
 * A file or device that no one serves. Holes are found with SEEK_DATA and SEEK_HOLE, in grains, and not
 * read; block devices and file systems without it are data throughout.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

/* Holes smaller than this are not looked for. */
#define TZ_HOLE_GRAIN (64 * TZ_KIB)

/* Holes between data of one chunk are read with it up to this many bytes: the kernel fills in their zeros faster than a
 * chunk's requests go one after the other (bench/copy/README.md). */
#define TZ_HOLE_READ (512 * TZ_KIB)

typedef struct file_source {
    tz_source base;
    tz_file file;
    bool seeks; /* the file system tells holes */

    pthread_mutex_t lock;
    uint64_t from, to; /* the stretch found last: chunks come in order, so most look-ups end here */
    bool data;
} file_source;

/* A hole that reaches the end may be a file that was cut short. */
static int still_whole(const file_source *source)
{
    struct stat st;

    if (fstat(source->file.fd, &st) < 0)
        return -errno;
    return (uint64_t)st.st_size < source->base.size ? -ENODATA : 0;
}

/* Finds the stretch of data or hole that begins at `at`, a multiple of the grain; under the lock. */
static int find_stretch(file_source *source, uint64_t at)
{
    uint64_t size = source->base.size;
    off_t data = lseek(source->file.fd, (off_t)at, SEEK_DATA), hole;

    if (data < 0 && errno != ENXIO)
        return -errno;
    if (data < 0 || (uint64_t)data >= size) {
        int rc = still_whole(source);

        if (rc < 0)
            return rc;
        source->data = false;
        source->to = size;
    } else if (tz_align_down((uint64_t)data, TZ_HOLE_GRAIN) > at) {
        source->data = false;
        source->to = tz_align_down((uint64_t)data, TZ_HOLE_GRAIN);
    } else {
        hole = lseek(source->file.fd, data, SEEK_HOLE);
        if (hole < 0)
            return -errno;
        source->data = true;
        source->to = tz_min_u64(size, tz_align_up((uint64_t)hole, TZ_HOLE_GRAIN));
    }
    source->from = at;
    return 0;
}

/* How many bytes from `at` on are of one kind, and which. */
static int stretch(file_source *source, uint64_t at, uint64_t *length, bool *data)
{
    int rc = 0;

    if (!source->seeks) {
        *data = true;
        *length = source->base.size - at;
        return 0;
    }
    pthread_mutex_lock(&source->lock);
    if (at < source->from || at >= source->to)
        rc = find_stretch(source, at);
    if (rc == 0) {
        *data = source->data;
        *length = source->to - at;
    }
    pthread_mutex_unlock(&source->lock);
    return rc;
}

/* Lengthens a stretch of data that begins at `at` over short holes to the data behind them, within `limit` bytes. */
static int bridge(file_source *source, uint64_t at, uint64_t limit, uint64_t *length)
{
    while (*length < limit) {
        uint64_t next = 0;
        bool data = false;
        int rc = stretch(source, at + *length, &next, &data);

        if (rc < 0)
            return rc;
        /* A hole that is followed by no more data of this chunk is not read. */
        if (!data && (next > TZ_HOLE_READ || *length + next >= limit))
            return 0;
        *length += next;
    }
    return 0;
}

static void submit_read(file_source *source, tz_chunk *chunk, uint64_t length)
{
    uint64_t most = chunk->piece ? chunk->piece : chunk->length;
    uint32_t grain = source->file.offset_align;

    /* Nothing but the zeros of holes lies before: now they have to be there. */
    if (chunk->zero)
        memset(chunk->frame, 0, chunk->at);
    chunk->zero = false;
    chunk->run = (uint32_t)tz_min_u64(length, most);
    tz_chunk_read(chunk, &source->file, chunk->frame + chunk->at, tz_align_up(chunk->run, grain),
                  chunk->offset + chunk->at);
}

static int load(tz_source *base, tz_chunk *chunk)
{
    file_source *source = tz_container_of(base, file_source, base);

    if (chunk->run) {
        if (chunk->result < 0)
            return (int)chunk->result;
        if (chunk->result < chunk->run)
            return -ENODATA;
        chunk->read += chunk->run;
        chunk->at += chunk->run;
        chunk->run = 0;
    }
    while (chunk->at < chunk->length) {
        uint64_t length = 0;
        bool data = false;
        int rc = stretch(source, chunk->offset + chunk->at, &length, &data);

        if (rc < 0)
            return rc;
        if (data)
            rc = bridge(source, chunk->offset + chunk->at, chunk->length - chunk->at, &length);
        if (rc < 0)
            return rc;
        length = tz_min_u64(length, chunk->length - chunk->at);
        if (data) {
            submit_read(source, chunk, length);
            return TZ_STEP_PENDING;
        }
        if (!chunk->zero)
            memset(chunk->frame + chunk->at, 0, length);
        chunk->at += (uint32_t)length;
    }
    return TZ_STEP_DONE;
}

/* Stretches end on grains or at the size, so chunks must do so too; a smaller or odd chunk reads all. */
static int prepare(tz_source *base, uint32_t chunk_size)
{
    file_source *source = tz_container_of(base, file_source, base);

    if (chunk_size % source->file.offset_align)
        return -EINVAL;
    if (chunk_size % TZ_HOLE_GRAIN)
        source->seeks = false;
    return 0;
}

static void destroy(tz_source *base)
{
    file_source *source = tz_container_of(base, file_source, base);

    tz_file_close(&source->file);
    pthread_mutex_destroy(&source->lock);
    free(source);
}

static const tz_source_ops file_source_ops = {.prepare = prepare, .load = load, .destroy = destroy};

int tz_source_file(tz_source **out, const tz_file *file, uint64_t size)
{
    file_source *source;

    if (size > file->size || file->memory_align > TZ_FRAME_ALIGN || file->offset_align > TZ_FRAME_ALIGN)
        return -EINVAL;
    source = calloc(1, sizeof(*source));
    if (!source)
        return -ENOMEM;
    source->base.ops = &file_source_ops;
    source->base.size = size;
    source->file = *file;
    pthread_mutex_init(&source->lock, NULL);
    source->seeks = !file->block_device && (lseek(file->fd, 0, SEEK_HOLE) >= 0 || errno == ENXIO);
    *out = &source->base;
    return 0;
}
