/* SPDX-License-Identifier: Apache-2.0
 *
 * The packs of one recovery point, and the sink that appends to them. Many workers append at once: each
 * reserves its place under the lock and writes there, straight from the frame. Places are aligned, so a
 * short last chunk is padded with zeros in the file; its stored length is the true one.
 *
 * Packs stay open until destroy, because finish makes all of them durable through the descriptors
 * that wrote: a write error that the kernel reports once cannot get lost in between.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"
#include "tz/crash.h"

#define TZ_PACK_BYTES_DEFAULT (4 * TZ_GIB)
#define TZ_PACK_PREFIX_MAX    200

typedef struct pack {
    tz_file file;
    uint64_t end; /* bytes reserved */
} pack;

struct tz_pack_writer {
    int dir_fd; /* our own */
    char prefix[TZ_PACK_PREFIX_MAX + 1];
    uint64_t max_bytes;
    pthread_mutex_t lock;
    pack *packs;
    uint32_t count;
    int error; /* of making a pack, or of finish: final */
    bool finished;
};

int tz_pack_writer_create(tz_pack_writer **out, int dir_fd, const char *prefix, uint64_t max_bytes)
{
    tz_pack_writer *writer;

    if (!*prefix || strlen(prefix) > TZ_PACK_PREFIX_MAX || strchr(prefix, '/'))
        return -EINVAL;
    writer = calloc(1, sizeof(*writer));
    if (!writer)
        return -ENOMEM;
    writer->dir_fd = fcntl(dir_fd, F_DUPFD_CLOEXEC, 0);
    if (writer->dir_fd < 0) {
        int rc = -errno;

        free(writer);
        return rc;
    }
    strcpy(writer->prefix, prefix);
    writer->max_bytes = max_bytes ? max_bytes : TZ_PACK_BYTES_DEFAULT;
    pthread_mutex_init(&writer->lock, NULL);
    *out = writer;
    return 0;
}

/* The next pack file, which must not exist; under the lock. */
static int add_pack(tz_pack_writer *writer)
{
    char name[TZ_PACK_PREFIX_MAX + 32];
    pack *grown = realloc(writer->packs, (writer->count + 1) * sizeof(*grown));
    pack *added;
    int fd, rc;

    if (!grown)
        return -ENOMEM;
    writer->packs = grown;
    snprintf(name, sizeof(name), "%s-%04u.pack", writer->prefix, writer->count);
    fd = openat(writer->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    added = &grown[writer->count];
    rc = tz_mover_file_open(&added->file, fd, TZ_FILE_WRITE);
    close(fd);
    if (rc < 0)
        return rc;
    added->end = 0;
    writer->count++;
    return 0;
}

/* A place for `bytes` (a multiple of the frame's alignment). */
static int reserve(tz_pack_writer *writer, uint64_t bytes, uint32_t *number, uint64_t *offset)
{
    pack *last;
    int rc;

    pthread_mutex_lock(&writer->lock);
    rc = writer->finished ? -EBADF : writer->error;
    if (rc == 0) {
        last = writer->count ? &writer->packs[writer->count - 1] : NULL;
        if (!last || (last->end > 0 && last->end + bytes > writer->max_bytes))
            rc = writer->error = add_pack(writer);
    }
    if (rc == 0) {
        last = &writer->packs[writer->count - 1];
        *number = writer->count - 1;
        *offset = last->end;
        last->end += bytes;
    }
    pthread_mutex_unlock(&writer->lock);
    return rc;
}

/* A copy: the table may grow meanwhile. */
static tz_file file_of(tz_pack_writer *writer, uint32_t number)
{
    tz_file file;

    pthread_mutex_lock(&writer->lock);
    file = writer->packs[number].file;
    pthread_mutex_unlock(&writer->lock);
    return file;
}

int tz_pack_writer_finish(tz_pack_writer *writer, uint32_t *packs, uint64_t *bytes)
{
    uint64_t sum = 0;
    int rc;

    pthread_mutex_lock(&writer->lock);
    for (uint32_t i = 0; i < writer->count && writer->error == 0; i++) {
        if (fdatasync(writer->packs[i].file.fd) < 0)
            writer->error = -errno;
        sum += writer->packs[i].end;
    }
    writer->finished = true;
    rc = writer->error;
    if (rc == 0) {
        *packs = writer->count;
        *bytes = sum;
    }
    pthread_mutex_unlock(&writer->lock);
    return rc;
}

uint64_t tz_pack_writer_pack_bytes(const tz_pack_writer *writer, uint32_t number)
{
    return number < writer->count ? writer->packs[number].end : 0;
}

void tz_pack_writer_destroy(tz_pack_writer *writer)
{
    if (!writer)
        return;
    for (uint32_t i = 0; i < writer->count; i++)
        tz_file_close(&writer->packs[i].file);
    close(writer->dir_fd);
    pthread_mutex_destroy(&writer->lock);
    free(writer->packs);
    free(writer);
}

/* ---- the sink ---- */

typedef struct packs_sink {
    tz_sink base;
    tz_pack_writer *writer; /* shared */
} packs_sink;

/* The next piece of the chunk, at its place in the pack. */
static int write_piece(packs_sink *sink, tz_chunk *chunk)
{
    uint32_t bytes = (uint32_t)tz_align_up(chunk->length, TZ_FRAME_ALIGN), left = bytes - chunk->at;
    uint32_t piece = chunk->piece ? (uint32_t)tz_min_u64(chunk->piece, left) : left, at = chunk->at;
    tz_file file;

    if (left == 0) {
        TZ_CRASH_POINT("pack.written");
        return TZ_STEP_DONE;
    }
    chunk->at += piece;
    chunk->written += piece;
    file = file_of(sink->writer, chunk->entry.pack);
    tz_chunk_write(chunk, &file, chunk->frame + at, piece, chunk->entry.offset + at);
    return TZ_STEP_PENDING;
}

static int store(tz_sink *base, tz_chunk *chunk)
{
    packs_sink *sink = tz_container_of(base, packs_sink, base);
    int rc;

    if (chunk->phase == 1)
        return chunk->result < 0 ? (int)chunk->result : write_piece(sink, chunk);
    if (chunk->zero)
        return TZ_STEP_DONE;
    rc = reserve(sink->writer, tz_align_up(chunk->length, TZ_FRAME_ALIGN), &chunk->entry.pack, &chunk->entry.offset);
    if (rc < 0)
        return rc;
    tz_chunk_materialize(chunk, TZ_FRAME_ALIGN);
    chunk->entry.stored_length = chunk->length;
    chunk->phase = 1;
    chunk->at = 0;
    return write_piece(sink, chunk);
}

static void destroy(tz_sink *base)
{
    free(tz_container_of(base, packs_sink, base));
}

static const tz_sink_ops packs_sink_ops = {.store = store, .destroy = destroy};

int tz_sink_packs(tz_sink **out, tz_pack_writer *writer)
{
    packs_sink *sink = calloc(1, sizeof(*sink));

    if (!sink)
        return -ENOMEM;
    sink->base.ops = &packs_sink_ops;
    sink->writer = writer;
    *out = &sink->base;
    return 0;
}
