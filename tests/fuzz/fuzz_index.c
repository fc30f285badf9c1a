/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes at all, as an index and its packs, restored by the mover.
 *
 *   input   4 bytes: chunk size (4 KiB << low 2 bits), packs (0 to 3), terms, entries too many
 *           4 bytes: size of the dataset, within 24 chunks
 *           a byte a pack: its number; then 48 bytes an entry, little-endian, as on disk; the rest: the packs
 *   terms   1: the digests are made right, so that what else is wrong is looked at; 2: the packs are one page shorter
 *           each; 4: uring
 *
 * What must hold: no sanitizer speaks; an index is refused (-EBADMSG, -EINVAL), or the restore ends with 0 or -EBADMSG;
 * with 0 the target is, byte for byte, what the entries say, and every chunk matches its digest.
 */
#include <errno.h>

#include "target.h"
#include "tz/mover.h"

#define CHUNKS_MAX 24
#define PACKS_MAX  3
#define WAIT_NS    (20 * INT64_C(1000000000))

typedef struct stored {
    uint32_t chunk_size, packs;
    unsigned terms;
    uint64_t size, count;
    uint32_t numbers[PACKS_MAX];
    uint8_t *content[PACKS_MAX];
    uint64_t bytes[PACKS_MAX];
    int fds[PACKS_MAX];
    tz_index_entry *entries;
} stored;

static uint64_t length_of(const stored *s, uint64_t chunk)
{
    return chunk * s->chunk_size >= s->size ? 0 : tz_min_u64(s->chunk_size, s->size - chunk * s->chunk_size);
}

/* The bytes that an entry means; NULL: zeros, or none at all when *there is false. */
static const uint8_t *meant(const stored *s, uint64_t chunk, bool *there)
{
    const tz_index_entry *entry = &s->entries[chunk];

    *there = true;
    if (entry->codec == TZ_CODEC_ZERO)
        return NULL;
    for (uint32_t i = 0; i < s->packs; i++)
        if (s->numbers[i] == entry->pack && entry->offset <= s->bytes[i] &&
            length_of(s, chunk) <= s->bytes[i] - entry->offset)
            return s->content[i] + entry->offset;
    *there = false;
    return NULL;
}

static void digest_of(const stored *s, uint64_t chunk, tz_digest *out)
{
    bool there;
    const uint8_t *bytes = meant(s, chunk, &there);

    if (bytes)
        tz_digest_plain(out, bytes, length_of(s, chunk));
    else
        tz_digest_zeros(out, length_of(s, chunk));
}

static void take_entries(stored *s, input *in)
{
    s->entries = calloc(s->count ? s->count : 1, sizeof(*s->entries));
    REQUIRE(s->entries);
    for (uint64_t i = 0; i < s->count; i++) {
        size_t n = in->left < sizeof(s->entries[i]) ? in->left : sizeof(s->entries[i]);

        memcpy(&s->entries[i], in->at, n);
        in->at += n;
        in->left -= n;
    }
}

static void take_packs(stored *s, input *in)
{
    for (uint32_t i = 0; i < s->packs; i++) {
        uint64_t there = tz_align_up(in->left + 1, 4096);

        s->bytes[i] = there > 4096 && s->terms & 2 ? there - 4096 : there;
        s->content[i] = calloc(1, there);
        REQUIRE(s->content[i]);
        memcpy(s->content[i], in->at, in->left);
        if (in->left)
            s->content[i][0] += (uint8_t)i;
        s->fds[i] = memory_file("pack", s->content[i], s->bytes[i]);
    }
}

static void take_stored(stored *s, input *in)
{
    uint64_t extra;

    memset(s, 0, sizeof(*s));
    s->chunk_size = 4096u << (take(in, 1) & 3);
    s->packs = (uint32_t)take(in, 1) % (PACKS_MAX + 1);
    s->terms = (unsigned)take(in, 1);
    extra = take(in, 1) & 1;
    s->size = take(in, 4) % (CHUNKS_MAX * (uint64_t)s->chunk_size + 1);
    s->count = (s->size + s->chunk_size - 1) / s->chunk_size + extra;
    for (uint32_t i = 0; i < s->packs; i++)
        s->numbers[i] = (uint32_t)take(in, 1);
    take_entries(s, in);
    take_packs(s, in);
    if (s->terms & 1)
        for (uint64_t i = 0; i < s->count; i++)
            digest_of(s, i, &s->entries[i].digest);
}

static void check_target(const stored *s, int target)
{
    uint8_t *got = malloc(s->chunk_size);

    REQUIRE(got);
    for (uint64_t i = 0; i < s->count; i++) {
        uint64_t length = length_of(s, i);
        tz_digest digest;
        const uint8_t *bytes;
        bool there;

        bytes = meant(s, i, &there);
        REQUIRE(there);
        REQUIRE(pread(target, got, length, (off_t)(i * s->chunk_size)) == (ssize_t)length);
        REQUIRE(bytes ? memcmp(got, bytes, length) == 0 : tz_is_zero(got, length));
        tz_digest_plain(&digest, got, length);
        REQUIRE(memcmp(&digest, &s->entries[i].digest, sizeof(digest)) == 0);
    }
    free(got);
}

static void restore(const stored *s, tz_source *source)
{
    int target = memory_file("target", NULL, s->size);
    tz_mover_config config = {.io = s->terms & 4 ? TZ_IO_AUTO : TZ_IO_THREADS, .chunk_size = s->chunk_size, .depth = 2};
    tz_transfer_report report;
    tz_bufspace *space;
    tz_mover *mover;
    tz_file file;
    tz_sink *sink;

    REQUIRE(tz_file_adopt(&file, fcntl(target, F_DUPFD_CLOEXEC, 0), TZ_FILE_WRITE) == 0);
    REQUIRE(tz_sink_image(&sink, &file, s->size, true) == 0);
    REQUIRE(tz_bufspace_create(&space, s->chunk_size, 4, 2, 0) == 0);
    REQUIRE(tz_mover_create(&mover, space, &config) == 0);
    REQUIRE(tz_mover_add(mover, source, sink, NULL) == 0);
    REQUIRE(tz_mover_start(mover) == 0);
    REQUIRE(tz_mover_wait(mover, WAIT_NS) == 1);
    tz_mover_report_get(mover, 0, &report);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    REQUIRE(report.error == 0 || report.error == -EBADMSG);
    if (report.error == 0)
        check_target(s, target);
    close(target);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    tz_source *source;
    stored s;
    int rc;

    if (size < 8)
        return -1;
    take_stored(&s, &in);
    rc = tz_source_index(&source, s.entries, s.count, s.size, s.chunk_size, s.numbers, s.fds, s.packs);
    REQUIRE(rc == 0 || rc == -EBADMSG);
    if (rc == 0)
        restore(&s, source);
    for (uint32_t i = 0; i < s.packs; i++) {
        close(s.fds[i]);
        free(s.content[i]);
    }
    free(s.entries);
    return 0;
}
