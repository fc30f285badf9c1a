/* SPDX-License-Identifier: Apache-2.0
 *
 * Packs and back: round trips through shared, rolled-over packs; damage is found, and found where it is;
 * impossible indexes are refused; nothing is overwritten.
 */
#include "packs_fixture.h"

static int verify(stored *st, const tz_mover_config *config, tz_transfer_report *report)
{
    tz_source *source;
    tz_sink *sink;

    CHECK_EQ(source_of(st, &source), 0);
    CHECK_EQ(tz_sink_null(&sink), 0);
    run_one(config, source, sink, NULL, report);
    return report->error;
}

static void round_trips(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t w = 0; w < LENGTH_OF(worker_counts); w++) {
            tz_mover_config config = {.io = engines[e], .workers = worker_counts[w], .depth = 4, .chunk_size = CHUNK};
            tz_transfer_report report;
            tz_source *source;
            stored st;
            int to;

            stored_make(&st, w ? "/var/tmp" : "/dev/shm", &config);
            to = make_file(&st.s, "to", 0, 1);
            CHECK_EQ(source_of(&st, &source), 0);
            run_one(&config, source, image_sink_of(to, SIZE, true, 0), NULL, &report);
            CHECK_EQ(report.error, 0);
            CHECK(same_content(st.original, to));
            close(to);
            stored_remove(&st);
        }
}

static void several_transfers_share_packs(void)
{
    tz_mover_config config = {.workers = 3, .depth = 2, .chunk_size = CHUNK};
    tz_index_entry index[3][18] = {0};
    tz_pack_writer *writer;
    tz_bufspace *space;
    tz_mover *mover;
    uint64_t bytes;
    stored st = {0};
    int from[3];

    scratch_make(&st.s, "/var/tmp");
    st.original = make_file(&st.s, "original", 1, 1);
    CHECK_EQ(tz_pack_writer_create(&writer, st.s.fd, "shared", 5 * CHUNK), 0);
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 5, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    for (int i = 0; i < 3; i++) {
        char name[20];
        tz_sink *sink;

        snprintf(name, sizeof(name), "from%d", i);
        from[i] = make_file(&st.s, name, SIZE, (uint64_t)i);
        CHECK_EQ(tz_sink_packs(&sink, writer), 0);
        CHECK_EQ(tz_mover_add(mover, file_source_of(from[i], 0), sink, index[i]), i);
    }
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    check_space_empty(space);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    CHECK_EQ(tz_pack_writer_finish(writer, &st.packs, &bytes), 0);
    tz_pack_writer_destroy(writer);
    open_packs(&st, "shared");
    for (int i = 0; i < 3; i++) {
        int to = make_file(&st.s, "to", 0, 1);
        tz_transfer_report report;
        tz_source *source;

        memcpy(st.index, index[i], sizeof(st.index));
        CHECK_EQ(source_of(&st, &source), 0);
        run_one(&config, source, image_sink_of(to, SIZE, true, 0), NULL, &report);
        CHECK_EQ(report.error, 0);
        CHECK(same_content(from[i], to));
        close(from[i]);
        close(to);
    }
    stored_remove(&st);
}

static void damage_is_found_where_it_is(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = CHUNK};
    tz_transfer_report report;
    tz_index_entry *entry;
    uint64_t chunk;
    uint8_t byte;
    stored st;

    stored_make(&st, "/var/tmp", &config);
    CHECK_EQ(verify(&st, &config, &report), 0);
    CHECK_EQ(report.bytes_done, SIZE);
    CHECK_EQ(report.bytes_written, 0);

    /* One bit in a pack. */
    chunk = first_chunk(&st, TZ_CODEC_RAW);
    entry = &st.index[chunk];
    CHECK_EQ(pread(st.fds[entry->pack], &byte, 1, (off_t)entry->offset + 777), 1);
    byte ^= 16;
    CHECK_EQ(pwrite(st.fds[entry->pack], &byte, 1, (off_t)entry->offset + 777), 1);
    CHECK_EQ(verify(&st, &config, &report), -EBADMSG);
    CHECK_EQ(report.error_offset, chunk * CHUNK);
    CHECK_EQ(report.side, TZ_SIDE_SOURCE);
    byte ^= 16;
    CHECK_EQ(pwrite(st.fds[entry->pack], &byte, 1, (off_t)entry->offset + 777), 1);
    CHECK_EQ(verify(&st, &config, &report), 0);

    /* A zero chunk whose digest is not that of zeros. */
    chunk = first_chunk(&st, TZ_CODEC_ZERO);
    st.index[chunk].digest.bytes[3] ^= 1;
    CHECK_EQ(verify(&st, &config, &report), -EBADMSG);
    CHECK_EQ(report.error_offset, chunk * CHUNK);
    st.index[chunk].digest.bytes[3] ^= 1;

    /* A pack cut short in the chunk that lies last in it: not always the last of the dataset. */
    for (uint64_t i = 0; i < LENGTH_OF(st.index); i++)
        if (st.index[i].codec == TZ_CODEC_RAW && st.index[i].pack == entry->pack &&
            st.index[i].offset >= entry->offset) {
            entry = &st.index[i];
            chunk = i;
        }
    CHECK_EQ(ftruncate(st.fds[entry->pack], (off_t)entry->offset + 100), 0);
    CHECK_EQ(verify(&st, &config, &report), -EBADMSG);
    CHECK_EQ(report.error_offset, chunk * CHUNK);
    stored_remove(&st);
}

/* Sets a field to a value, expects refusal, and sets it back. */
#define REFUSED(field, value)                                                                                          \
    do {                                                                                                               \
        tz_index_entry keep = *entry;                                                                                  \
        entry->field = (value);                                                                                        \
        CHECK_EQ(source_of(&st, &source), -EBADMSG);                                                                   \
        *entry = keep;                                                                                                 \
    } while (0)

static void impossible_indexes_are_refused(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = CHUNK};
    tz_index_entry *entry;
    tz_source *source;
    stored st;

    stored_make(&st, "/dev/shm", &config);
    entry = &st.index[first_chunk(&st, TZ_CODEC_RAW)];
    REFUSED(pack, 99);
    REFUSED(codec, 7);
    REFUSED(origin, 3);
    REFUSED(stored_length, CHUNK - 1);
    REFUSED(stored_length, 0);
    REFUSED(offset, 100);
    REFUSED(offset, UINT64_MAX - 4095);
    REFUSED(reserved[2], 1);
    REFUSED(reserved2, 1);
    entry = &st.index[first_chunk(&st, TZ_CODEC_ZERO)];
    REFUSED(stored_length, CHUNK);
    REFUSED(offset, 4096);
    REFUSED(pack, 1);
    CHECK_EQ(tz_source_index(&source, st.index, 17, SIZE, CHUNK, st.numbers, st.fds, st.packs), -EBADMSG);
    CHECK_EQ(tz_source_index(&source, st.index, 18, SIZE, 1000, st.numbers, st.fds, st.packs), -EINVAL);
    CHECK_EQ(tz_source_index(&source, st.index, 18, UINT64_MAX, CHUNK, st.numbers, st.fds, st.packs), -EBADMSG);
    CHECK_EQ(source_of(&st, &source), 0);
    tz_source_destroy(source);
    stored_remove(&st);
}

static void nothing_is_overwritten(void)
{
    tz_mover_config config = {.workers = 2, .chunk_size = CHUNK};
    tz_transfer_report report;
    tz_pack_writer *writer;
    uint64_t bytes = 1;
    uint32_t packs = 1;
    tz_sink *sink;
    struct stat st;
    int from, there;
    scratch s;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", SIZE, 7);
    there = make_file(&s, "point-0001.pack", 0, 1);
    CHECK_EQ(pwrite(there, "precious", 8, 0), 8);
    CHECK_EQ(tz_pack_writer_create(&writer, s.fd, "a/b", 0), -EINVAL);
    CHECK_EQ(tz_pack_writer_create(&writer, s.fd, "point", 2 * CHUNK), 0);
    CHECK_EQ(tz_sink_packs(&sink, writer), 0);
    run_one(&config, file_source_of(from, 0), sink, NULL, &report);
    CHECK_EQ(report.error, -EEXIST);
    CHECK_EQ(report.side, TZ_SIDE_SINK);
    /* An error is final. */
    CHECK_EQ(tz_pack_writer_finish(writer, &packs, &bytes), -EEXIST);
    tz_pack_writer_destroy(writer);
    CHECK_EQ(fstat(there, &st), 0);
    CHECK_EQ(st.st_size, 8);
    close(from);
    close(there);
    scratch_remove(&s);
}

int main(void)
{
    RUN(round_trips);
    RUN(several_transfers_share_packs);
    RUN(damage_is_found_where_it_is);
    RUN(impossible_indexes_are_refused);
    RUN(nothing_is_overwritten);
    return 0;
}
