/* SPDX-License-Identifier: Apache-2.0
 *
 * A raw image file or a block device, written in place. What direct I/O cannot write, the last bytes of a size that
 * is not aligned, goes through a buffered descriptor of the same file, after the aligned part, so that
 * nothing is ever written beyond the size.
 *
 *   content   WRITE aligned part ─▶ WRITE tail ─▶ done
 *             fresh: WRITE run ─▶ WRITE run ─▶ ... the runs between longer stretches of zeros
 *             each of these in pieces while we yield
 *   zeros     fresh: done.   else: ZERO aligned part (punch, BLKZEROOUT) ─▶ tail as content
 *                                   └── cannot: as content
 *   delta     READ what is there; the pipeline compares. Where that is all zero, the target is fresh.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "tz/crash.h"

/* Zeros are looked for in pages, and left out of a fresh target in stretches of this many bytes or more: shorter ones
 * would only cut requests into small ones (bench/copy/README.md). */
#define TZ_SPARSE_PAGE 4096
#define TZ_SPARSE_MIN  (32 * TZ_KIB)

enum image_phase {
    IMAGE_BEGIN = 0,
    IMAGE_LOOKING,
    IMAGE_ZEROING,
    IMAGE_WRITING,
};

typedef struct image_sink {
    tz_sink base;
    tz_file file;
    tz_file tail; /* the same file, buffered; fd -1 when the file is buffered itself */
    uint64_t size;
    bool fresh;
    _Atomic bool cannot_zero; /* told once by the file system */
} image_sink;

/* Zeros are there already. */
static bool holds_zeros(const image_sink *sink, const tz_chunk *chunk)
{
    return sink->fresh || chunk->blank;
}

static bool zero_page(const tz_chunk *chunk, uint32_t at, uint32_t end)
{
    return tz_is_zero(chunk->frame + at, tz_min_u64(TZ_SPARSE_PAGE, end - at));
}

/* The first run in [*at, *end) worth writing on a target of zeros; *at == *end when there is none. */
static void next_run(const tz_chunk *chunk, uint32_t *at, uint32_t *end)
{
    uint32_t from = *at, last;

    while (from < *end && zero_page(chunk, from, *end))
        from = (uint32_t)tz_min_u64(from + TZ_SPARSE_PAGE, *end);
    last = from;
    for (uint32_t page = from; page < *end && page - last < TZ_SPARSE_MIN; page += TZ_SPARSE_PAGE)
        if (!zero_page(chunk, page, *end))
            last = (uint32_t)tz_min_u64(page + TZ_SPARSE_PAGE, *end);
    *at = from;
    *end = last;
}

/* The part of the chunk that goes through `file`; the rest is the tail. A page is written one way only. */
static uint32_t body(const image_sink *sink, const tz_chunk *chunk)
{
    return sink->file.direct ? (uint32_t)tz_align_down(chunk->length, TZ_FRAME_ALIGN) : chunk->length;
}

/* The next operation of the chunk's content behind `at` bytes. */
static int write_from(image_sink *sink, tz_chunk *chunk, uint32_t at)
{
    for (uint32_t end; at < chunk->length; at = end) {
        bool tail = at >= body(sink, chunk);

        end = tail ? chunk->length : body(sink, chunk);
        tz_chunk_materialize(chunk, 1);
        if (holds_zeros(sink, chunk)) {
            uint32_t run = end;

            next_run(chunk, &at, &run);
            if (at == run)
                continue;
            end = run;
        }
        if (chunk->piece)
            end = (uint32_t)tz_min_u64(end, at + chunk->piece);
        chunk->phase = IMAGE_WRITING;
        chunk->at = end;
        chunk->written += end - at;
        tz_chunk_write(chunk, tail && sink->tail.fd >= 0 ? &sink->tail : &sink->file, chunk->frame + at, end - at,
                       chunk->offset + at);
        return TZ_STEP_PENDING;
    }
    return TZ_STEP_DONE;
}

static int begin(image_sink *sink, tz_chunk *chunk)
{
    uint32_t aligned = (uint32_t)tz_align_down(chunk->length, TZ_FRAME_ALIGN);

    if (!chunk->zero)
        return write_from(sink, chunk, 0);
    if (holds_zeros(sink, chunk))
        return TZ_STEP_DONE;
    if (aligned == 0 || atomic_load_explicit(&sink->cannot_zero, memory_order_relaxed))
        return write_from(sink, chunk, 0);
    chunk->phase = IMAGE_ZEROING;
    if (sink->file.block_device)
        tz_chunk_range(chunk, TZ_IO_BLKZERO, sink->file.fd, chunk->offset, aligned, 0);
    else
        tz_chunk_range(chunk, TZ_IO_FALLOCATE, sink->file.fd, chunk->offset, aligned,
                       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    return TZ_STEP_PENDING;
}

static int zeroed(image_sink *sink, tz_chunk *chunk)
{
    uint32_t aligned = (uint32_t)tz_align_down(chunk->length, TZ_FRAME_ALIGN);

    if (chunk->result == -EOPNOTSUPP || chunk->result == -ENOSYS || chunk->result == -EINVAL ||
        chunk->result == -ENOTTY || chunk->result == -EPERM) {
        atomic_store_explicit(&sink->cannot_zero, true, memory_order_relaxed);
        return write_from(sink, chunk, 0);
    }
    return chunk->result < 0 ? (int)chunk->result : write_from(sink, chunk, aligned);
}

static int store(tz_sink *base, tz_chunk *chunk)
{
    image_sink *sink = tz_container_of(base, image_sink, base);

    switch ((enum image_phase)chunk->phase) {
    case IMAGE_BEGIN:
        return begin(sink, chunk);
    case IMAGE_LOOKING:
        break;
    case IMAGE_ZEROING:
        return zeroed(sink, chunk);
    case IMAGE_WRITING:
        if (chunk->result < 0)
            return (int)chunk->result;
        TZ_CRASH_POINT("target.stored");
        return write_from(sink, chunk, chunk->at);
    }
    return -EINVAL;
}

/* Read past the cache where it is written so. A file may be too short, or not there yet: that is no content. */
static int look(tz_sink *base, tz_chunk *chunk)
{
    image_sink *sink = tz_container_of(base, image_sink, base);

    if (chunk->phase == IMAGE_BEGIN) {
        chunk->phase = IMAGE_LOOKING;
        tz_chunk_read(chunk, &sink->file, chunk->frame, tz_align_up(chunk->length, sink->file.offset_align),
                      chunk->offset);
        return TZ_STEP_PENDING;
    }
    if (chunk->result < 0)
        return (int)chunk->result;
    return chunk->result < chunk->length ? -ENODATA : TZ_STEP_DONE;
}

static int prepare(tz_sink *base, uint64_t size)
{
    image_sink *sink = tz_container_of(base, image_sink, base);
    int refused = 0;

    if (size != sink->size)
        return -EINVAL;
    /* Direct writes that make a file longer go one after the other, so a new one has its length beforehand. Where it
     * is refused that, the writes will say why. */
    if (sink->fresh && !sink->file.block_device)
        refused = ftruncate(sink->file.fd, (off_t)size);
    (void)refused;
    return 0;
}

static int finish(tz_sink *base)
{
    image_sink *sink = tz_container_of(base, image_sink, base);
    struct stat st;

    if (sink->file.block_device)
        return 0;
    if (fstat(sink->file.fd, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size != sink->size && ftruncate(sink->file.fd, (off_t)sink->size) < 0)
        return -errno;
    return 0;
}

static int sync_image(tz_sink *base)
{
    image_sink *sink = tz_container_of(base, image_sink, base);

    /* The tail's pages are the same inode's: one call covers both descriptors. */
    return fdatasync(sink->file.fd) < 0 ? -errno : 0;
}

static void destroy(tz_sink *base)
{
    image_sink *sink = tz_container_of(base, image_sink, base);

    if (sink->tail.fd >= 0)
        tz_file_close(&sink->tail);
    tz_file_close(&sink->file);
    free(sink);
}

static const tz_sink_ops image_sink_ops = {
    .prepare = prepare, .store = store, .finish = finish, .sync = sync_image, .destroy = destroy};

static const tz_sink_ops delta_sink_ops = {
    .prepare = prepare, .look = look, .store = store, .finish = finish, .sync = sync_image, .destroy = destroy};

int tz_sink_delta(tz_sink **out, const tz_file *file, uint64_t size, bool keep)
{
    tz_sink *sink;
    int rc = tz_sink_image(&sink, file, size, false);

    if (rc < 0)
        return rc;
    sink->ops = &delta_sink_ops;
    sink->keep = keep;
    *out = sink;
    return 0;
}

int tz_sink_image(tz_sink **out, const tz_file *file, uint64_t size, bool fresh)
{
    image_sink *sink;
    int rc;

    if (!file->writable || file->memory_align > TZ_FRAME_ALIGN || file->offset_align > TZ_FRAME_ALIGN)
        return -EINVAL;
    if (file->block_device && file->size < size)
        return -ENOSPC;
    sink = calloc(1, sizeof(*sink));
    if (!sink)
        return -ENOMEM;
    sink->base.ops = &image_sink_ops;
    sink->tail.fd = -1;
    if (file->direct && size % TZ_FRAME_ALIGN) {
        rc = tz_mover_file_open(&sink->tail, file->fd, TZ_FILE_WRITE | TZ_FILE_BUFFERED);
        if (rc < 0) {
            free(sink);
            return rc;
        }
    }
    sink->file = *file;
    sink->size = size;
    sink->fresh = fresh;
    *out = &sink->base;
    return 0;
}
