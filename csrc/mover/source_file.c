/* SPDX-License-Identifier: Apache-2.0
 *
 * A file or device that no one serves. Holes are looked for and not read; block devices and file systems that do not tell
 * them are data throughout.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "holes.h"
#include "internal.h"

/* Holes between data of one chunk are read with it up to this many bytes: the kernel fills in their zeros faster than a
 * chunk's requests go one after the other (bench/copy/README.md). */
#define TZ_HOLE_READ (512 * TZ_KIB)

typedef struct file_source {
    tz_source base;
    tz_file file;
    bool seeks; /* the file system tells holes */
    tz_holes holes;
} file_source;

/* How many bytes behind `at` bytes of the chunk are of one kind, and which. A network or user-space file system may have
 * to ask for that, and get no answer: then this worker stays here. */
static int stretch(file_source *source, tz_chunk *chunk, uint64_t at, uint64_t *length, bool *data)
{
    int rc;

    if (!source->seeks) {
        *data = true;
        *length = source->base.size - (chunk->offset + at);
        return 0;
    }
    tz_chunk_asks(chunk);
    rc = tz_holes_look(&source->holes, chunk->offset + at, length, data);
    tz_chunk_told(chunk);
    return rc;
}

/* Lengthens the stretch of data that lies next in the chunk over short holes to the data behind them. */
static int bridge(file_source *source, tz_chunk *chunk, uint64_t *length)
{
    const uint64_t limit = chunk->length - chunk->at;

    while (*length < limit) {
        uint64_t next = 0;
        bool data = false;
        int rc = stretch(source, chunk, chunk->at + *length, &next, &data);

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
        int rc = stretch(source, chunk, chunk->at, &length, &data);

        if (rc < 0)
            return rc;
        if (data)
            rc = bridge(source, chunk, &length);
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
    tz_holes_fini(&source->holes);
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
    tz_holes_init(&source->holes, file->fd, size);
    source->seeks = !file->block_device && (lseek(file->fd, 0, SEEK_HOLE) >= 0 || errno == ENXIO);
    *out = &source->base;
    return 0;
}
