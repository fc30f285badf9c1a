/* SPDX-License-Identifier: Apache-2.0
 *
 * A dataset in packs of a few chunks each, as a backup leaves it, to be read back, damaged, restored.
 */
#ifndef TZ_TESTS_PACKS_FIXTURE_H
#define TZ_TESTS_PACKS_FIXTURE_H

#include "mover_fixture.h"

#define SIZE (17 * CHUNK + 5000)

typedef struct stored {
    scratch s;
    int original;
    tz_index_entry index[18];
    uint32_t numbers[16];
    int fds[16];
    uint32_t packs;
} stored;

static inline void open_packs(stored *st, const char *prefix)
{
    for (uint32_t i = 0; i < st->packs; i++) {
        char name[64];

        snprintf(name, sizeof(name), "%s-%04u.pack", prefix, i);
        st->numbers[i] = i;
        st->fds[i] = openat(st->s.fd, name, O_RDWR | O_CLOEXEC);
        CHECK(st->fds[i] >= 0);
    }
}

static inline void stored_make(stored *st, const char *base, const tz_mover_config *config)
{
    tz_transfer_report report;
    tz_pack_writer *writer;
    uint64_t bytes;
    tz_sink *sink;

    memset(st, 0, sizeof(*st));
    scratch_make(&st->s, base);
    st->original = make_file(&st->s, "original", SIZE, 7);
    CHECK_EQ(pwrite(st->original, "end", 3, SIZE - 3), 3);
    CHECK_EQ(tz_pack_writer_create(&writer, st->s.fd, "point", 3 * CHUNK), 0);
    CHECK_EQ(tz_sink_packs(&sink, writer), 0);
    run_one(config, file_source_of(st->original, 0), sink, st->index, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(tz_pack_writer_finish(writer, &st->packs, &bytes), 0);
    CHECK(st->packs > 1 && st->packs < 16);
    CHECK_EQ(report.bytes_written, bytes);
    for (uint32_t i = 0; i < st->packs; i++)
        CHECK(tz_pack_writer_pack_bytes(writer, i) <= 3 * CHUNK);
    tz_pack_writer_destroy(writer);
    for (size_t i = 0; i < LENGTH_OF(st->index); i++) {
        uint64_t length = tz_min_u64(CHUNK, SIZE - i * CHUNK);

        CHECK_EQ(st->index[i].offset % 4096, 0);
        CHECK_EQ(st->index[i].stored_length, st->index[i].codec == TZ_CODEC_ZERO ? 0 : length);
    }
    open_packs(st, "point");
}

static inline void stored_remove(stored *st)
{
    for (uint32_t i = 0; i < st->packs; i++)
        close(st->fds[i]);
    close(st->original);
    scratch_remove(&st->s);
}

static inline int source_of(stored *st, tz_source **out)
{
    return tz_source_index(out, st->index, LENGTH_OF(st->index), SIZE, CHUNK, st->numbers, st->fds, st->packs);
}

static inline uint64_t first_chunk(const stored *st, uint8_t codec)
{
    for (uint64_t i = 1; i < LENGTH_OF(st->index); i++)
        if (st->index[i].codec == codec)
            return i;
    CHECK(!"no such chunk");
    return 0;
}

#endif
