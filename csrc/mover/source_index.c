/* SPDX-License-Identifier: Apache-2.0
 *
 * A dataset of a repository. The index is not believed: what is impossible in it is refused at once, and every
 * chunk, zeros too, is compared with its digest before it goes anywhere. Packs are read past the page cache
 * where that works, so that a check looks at the disk.
 *
 * Salvaged, an impossible entry is told when its chunk's turn comes: its codec is LOST here, and its origin says why.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define LOST 255 /* no codec */

typedef struct index_source {
    tz_source base;
    uint32_t chunk_size;
    tz_index_entry *entries; /* `pack` is the position in `packs` here */
    uint64_t count;
    tz_file *packs;
    uint32_t pack_count;
} index_source;

/* Is it the medium that has lost something, and not the machine that lacks something? */
static bool is_damage(int64_t error)
{
    switch (-error) {
    case EIO:
    case EBADMSG: /* checksums of a file system */
    case EUCLEAN:
    case ENODATA: /* a block device's medium error */
    case EILSEQ:  /* protection information */
    case EREMOTEIO:
        return true;
    default:
        return false;
    }
}

static int load(tz_source *base, tz_chunk *chunk)
{
    index_source *source = tz_container_of(base, index_source, base);
    const tz_index_entry *entry = &source->entries[chunk->number];
    const tz_file *file;

    if (entry->codec == TZ_CODEC_ZERO) {
        chunk->at = chunk->length;
        return TZ_STEP_DONE;
    }
    if (entry->codec == LOST) {
        chunk->damage = entry->origin;
        return -EBADMSG;
    }
    if (chunk->run == 0) {
        file = &source->packs[entry->pack];
        chunk->zero = false;
        chunk->run = chunk->length;
        tz_chunk_read(chunk, file, chunk->frame, tz_align_up(chunk->length, file->offset_align), entry->offset);
        return TZ_STEP_PENDING;
    }
    if (chunk->result < 0) {
        chunk->damage = is_damage(chunk->result) ? TZ_OUTCOME_UNREADABLE : 0;
        return (int)chunk->result;
    }
    if (chunk->result < chunk->length) {
        chunk->damage = TZ_OUTCOME_CUT;
        return -EBADMSG;
    }
    chunk->read += chunk->length;
    chunk->entry.origin = entry->origin;
    return TZ_STEP_DONE;
}

static int check(tz_source *base, const tz_chunk *chunk, const tz_digest *digest)
{
    index_source *source = tz_container_of(base, index_source, base);

    return memcmp(digest, &source->entries[chunk->number].digest, sizeof(*digest)) ? -EBADMSG : 0;
}

static int prepare(tz_source *base, uint32_t chunk_size)
{
    return chunk_size == tz_container_of(base, index_source, base)->chunk_size ? 0 : -EINVAL;
}

static void destroy(tz_source *base)
{
    index_source *source = tz_container_of(base, index_source, base);

    for (uint32_t i = 0; i < source->pack_count; i++)
        tz_file_close(&source->packs[i]);
    free(source->packs);
    free(source->entries);
    free(source);
}

static bool direct(const tz_source *base)
{
    const index_source *source = tz_container_of(base, const index_source, base);

    for (uint32_t i = 0; i < source->pack_count; i++)
        if (!source->packs[i].direct)
            return false;
    return true;
}

static const tz_source_ops index_source_ops = {
    .prepare = prepare, .load = load, .check = check, .direct = direct, .destroy = destroy};

/* The position of a pack among those given, or `packs`. */
static uint32_t position_of(uint32_t pack, const uint32_t *numbers, uint32_t packs, uint32_t guess)
{
    if (guess < packs && numbers[guess] == pack)
        return guess;
    for (uint32_t i = 0; i < packs; i++)
        if (numbers[i] == pack)
            return i;
    return packs;
}

static bool is_possible(const tz_index_entry *entry, uint64_t length)
{
    static const uint8_t zeros[8];

    if (memcmp(entry->reserved, zeros, sizeof(entry->reserved)) || entry->reserved2 || entry->origin > TZ_ORIGIN_MIXED)
        return false;
    if (entry->codec == TZ_CODEC_ZERO)
        return entry->offset == 0 && entry->pack == 0 && entry->stored_length == 0;
    return entry->codec == TZ_CODEC_RAW && entry->stored_length == length && entry->offset % TZ_FRAME_ALIGN == 0 &&
           entry->offset <= INT64_MAX - TZ_CHUNK_MAX;
}

/* An entry that cannot be followed: the whole index is refused, or, salvaged, its chunk is lost. */
static int refuse(const index_source *source, tz_index_entry *entry, enum tz_outcome why)
{
    if (!source->base.salvage)
        return -EBADMSG;
    entry->codec = LOST;
    entry->origin = (uint8_t)why;
    return 0;
}

/* Checks every entry, and turns pack numbers into positions. */
static int check_entries(index_source *source, const uint32_t *numbers, uint32_t packs)
{
    uint32_t guess = 0;

    for (uint64_t i = 0; i < source->count; i++) {
        tz_index_entry *entry = &source->entries[i];
        uint64_t length = tz_min_u64(source->chunk_size, source->base.size - i * source->chunk_size);
        int rc = 0;

        if (!is_possible(entry, length)) {
            rc = refuse(source, entry, TZ_OUTCOME_BAD_ENTRY);
        } else if (entry->codec != TZ_CODEC_ZERO) {
            guess = position_of(entry->pack, numbers, packs, guess);
            if (guess == packs)
                rc = refuse(source, entry, TZ_OUTCOME_NO_PACK);
            entry->pack = guess;
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int open_packs(index_source *source, const int *fds, uint32_t packs)
{
    for (uint32_t i = 0; i < packs; i++) {
        int rc = tz_mover_file_open(&source->packs[i], fds[i], 0);

        if (rc < 0)
            return rc;
        source->pack_count++;
    }
    return 0;
}

static int create(tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size, uint32_t chunk_size,
                  const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs, bool salvage)
{
    index_source *source;
    int rc = -ENOMEM;

    if (chunk_size == 0 || chunk_size > TZ_CHUNK_MAX || chunk_size % TZ_FRAME_ALIGN)
        return -EINVAL;
    if (count != size / chunk_size + (size % chunk_size != 0))
        return -EBADMSG;
    source = calloc(1, sizeof(*source));
    if (!source)
        return -ENOMEM;
    source->base.ops = &index_source_ops;
    source->base.size = size;
    source->base.salvage = salvage;
    source->chunk_size = chunk_size;
    source->count = count;
    source->entries = malloc(count ? count * sizeof(*entries) : 1);
    source->packs = calloc(packs ? packs : 1, sizeof(*source->packs));
    if (source->entries && source->packs) {
        if (count)
            memcpy(source->entries, entries, count * sizeof(*entries));
        rc = check_entries(source, pack_numbers, packs);
        if (rc == 0)
            rc = open_packs(source, pack_fds, packs);
    }
    if (rc < 0) {
        destroy(&source->base);
        return rc;
    }
    *out = &source->base;
    return 0;
}

int tz_source_index(tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size, uint32_t chunk_size,
                    const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs)
{
    return create(out, entries, count, size, chunk_size, pack_numbers, pack_fds, packs, false);
}

int tz_source_salvage(tz_source **out, const tz_index_entry *entries, uint64_t count, uint64_t size,
                      uint32_t chunk_size, const uint32_t *pack_numbers, const int *pack_fds, uint32_t packs)
{
    return create(out, entries, count, size, chunk_size, pack_numbers, pack_fds, packs, true);
}
