/* SPDX-License-Identifier: Apache-2.0
 *
 * What is left of a damaged dataset, and targets that hold some of it already: damage is the outcome of its chunk and
 * of no other; nothing that does not match its digest gets to a target; a delta writes what differs and only that, reads
 * no pack for what is there, and heals what the packs have lost.
 */
#include "loop_fixture.h"
#include "packs_fixture.h"

#define CHUNKS 18

typedef struct ended {
    tz_transfer_report report;
    uint8_t outcomes[CHUNKS];
} ended;

/* One transfer, to its end, with its outcomes. */
static void run_salvage(const tz_mover_config *config, tz_source *source, tz_sink *sink, ended *out)
{
    tz_bufspace *space;
    tz_mover *mover;

    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 6, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, config), 0);
    CHECK_EQ(tz_mover_add(mover, source, sink, NULL), 0);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    check_space_empty(space);
    tz_mover_report_get(mover, 0, &out->report);
    CHECK(tz_mover_outcomes(mover, 0) != NULL);
    memcpy(out->outcomes, tz_mover_outcomes(mover, 0), CHUNKS);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
}

/* All packs but `without`. */
static tz_source *salvage_of(stored *st, uint32_t without)
{
    uint32_t numbers[16], packs = 0;
    tz_source *source;
    int fds[16];

    for (uint32_t i = 0; i < st->packs; i++)
        if (i != without) {
            numbers[packs] = i;
            fds[packs++] = st->fds[i];
        }
    CHECK_EQ(tz_source_salvage(&source, st->index, CHUNKS, SIZE, CHUNK, numbers, fds, packs), 0);
    return source;
}

static tz_sink *delta_of(int fd, bool keep)
{
    tz_sink *sink;
    tz_file file;

    open_again(&file, fd, TZ_FILE_WRITE);
    CHECK_EQ(tz_sink_delta(&sink, &file, SIZE, keep), 0);
    return sink;
}

static uint64_t length_of(uint64_t chunk)
{
    return tz_min_u64(CHUNK, SIZE - chunk * CHUNK);
}

static void flip(stored *st, uint64_t chunk, uint64_t at)
{
    off_t where = (off_t)(st->index[chunk].offset + at);
    uint8_t byte;

    CHECK_EQ(pread(st->fds[st->index[chunk].pack], &byte, 1, where), 1);
    byte ^= 1;
    CHECK_EQ(pwrite(st->fds[st->index[chunk].pack], &byte, 1, where), 1);
}

/* Damage of every kind; expected[chunk] says which, 0 for none. */
static uint32_t damage(stored *st, uint8_t expected[CHUNKS])
{
    uint32_t gone = st->index[first_chunk(st, TZ_CODEC_RAW)].pack, cut = UINT32_MAX, count = 0, flipped = 0;

    memset(expected, 0, CHUNKS);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        tz_index_entry *entry = &st->index[i];

        if (entry->codec == TZ_CODEC_ZERO)
            continue;
        if (entry->pack == gone) {
            expected[i] = TZ_OUTCOME_NO_PACK;
        } else if (cut == UINT32_MAX || entry->pack == cut) {
            if (cut == UINT32_MAX)
                CHECK_EQ(ftruncate(st->fds[entry->pack], 0), 0);
            cut = entry->pack;
            expected[i] = TZ_OUTCOME_CUT;
        } else if (flipped < 2) {
            flip(st, i, flipped++ ? 0 : length_of(i) - 1);
            expected[i] = TZ_OUTCOME_ALTERED;
        } else if (flipped++ == 2) {
            entry->reserved[0] = 1;
            expected[i] = TZ_OUTCOME_BAD_ENTRY;
        }
        count += expected[i] != 0;
    }
    CHECK(flipped > 3);
    CHECK(count < CHUNKS);
    return gone;
}

static void check_outcomes(const ended *end, const uint8_t expected[CHUNKS])
{
    uint32_t damaged = 0;

    CHECK_EQ(end->report.error, 0);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        CHECK_EQ(end->outcomes[i], expected[i] ? expected[i] : TZ_OUTCOME_STORED);
        damaged += expected[i] != 0;
    }
    CHECK_EQ(end->report.chunks_damaged, damaged);
    CHECK_EQ(end->report.bytes_done, SIZE);
}

/* Zeros, or `filler` throughout, where it is damaged; the original elsewhere. */
static void check_content(stored *st, int fd, const uint8_t expected[CHUNKS], int filler)
{
    uint64_t size, original_size;
    uint8_t *data = read_all(fd, &size), *original = read_all(st->original, &original_size);

    CHECK_EQ(size, SIZE);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        const uint8_t *at = data + i * CHUNK;

        if (expected[i])
            for (uint64_t b = 0; b < length_of(i); b++)
                CHECK_EQ(at[b], filler);
        else
            CHECK(memcmp(at, original + i * CHUNK, length_of(i)) == 0);
    }
    free(data);
    free(original);
}

static void fill(int fd, int byte)
{
    uint8_t *data = malloc(SIZE);

    memset(data, byte, SIZE);
    CHECK_EQ(pwrite(fd, data, SIZE, 0), SIZE);
    free(data);
}

static void what_is_sound_is_salvaged(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t w = 0; w < LENGTH_OF(worker_counts); w++) {
            tz_mover_config config = {.io = engines[e], .workers = worker_counts[w], .depth = 4, .chunk_size = CHUNK};
            uint8_t expected[CHUNKS];
            uint32_t gone;
            tz_sink *sink;
            stored st;
            ended end;
            int to, old;

            stored_make(&st, w ? "/var/tmp" : "/dev/shm", &config);
            gone = damage(&st, expected);
            CHECK_EQ(tz_sink_null(&sink), 0);
            run_salvage(&config, salvage_of(&st, gone), sink, &end);
            check_outcomes(&end, expected);

            to = make_file(&st.s, "to", 0, 1);
            run_salvage(&config, salvage_of(&st, gone), image_sink_of(to, SIZE, true, 0), &end);
            check_outcomes(&end, expected);
            check_content(&st, to, expected, 0);

            /* Over something else: zeros all the same, not what was there. */
            old = make_file(&st.s, "old", 0, 1);
            fill(old, 0xee);
            run_salvage(&config, salvage_of(&st, gone), image_sink_of(old, SIZE, false, 0), &end);
            check_outcomes(&end, expected);
            check_content(&st, old, expected, 0);

            /* In order, as a stream. */
            CHECK_EQ(ftruncate(old, 0), 0);
            CHECK_EQ(lseek(old, 0, SEEK_SET), 0);
            CHECK_EQ(tz_sink_stream(&sink, old), 0);
            run_salvage(&config, salvage_of(&st, gone), sink, &end);
            check_outcomes(&end, expected);
            check_content(&st, old, expected, 0);
            close(old);
            close(to);
            stored_remove(&st);
        }
}

/* A pack on a device whose end cannot be read: the backing file is shorter than the device. */
static void what_cannot_be_read_is_told_from_what_is_altered(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++) {
        tz_mover_config config = {.io = engines[e], .workers = 2, .depth = 4, .chunk_size = CHUNK};
        uint32_t unreadable = 0;
        loop_device loop;
        tz_sink *sink;
        stored st;
        ended end;

        stored_make(&st, "/var/tmp", &config);
        loop_make(&loop, st.fds[0]);
        CHECK_EQ(ftruncate(st.fds[0], CHUNK), 0);
        close(st.fds[0]);
        st.fds[0] = loop.fd;
        CHECK_EQ(tz_sink_null(&sink), 0);
        run_salvage(&config, salvage_of(&st, UINT32_MAX), sink, &end);
        CHECK_EQ(end.report.error, 0);
        for (uint64_t i = 0; i < CHUNKS; i++) {
            bool beyond = st.index[i].codec == TZ_CODEC_RAW && st.index[i].pack == 0 && st.index[i].offset >= CHUNK;

            CHECK_EQ(end.outcomes[i], beyond ? TZ_OUTCOME_UNREADABLE : TZ_OUTCOME_STORED);
            unreadable += beyond;
        }
        CHECK(unreadable > 0);
        st.fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        loop_remove(&loop);
        stored_remove(&st);
    }
}

static void without_salvage_damage_ends_the_transfer(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = CHUNK};
    tz_transfer_report report;
    tz_source *source;
    tz_sink *sink;
    stored st;
    int to;

    stored_make(&st, "/var/tmp", &config);
    flip(&st, first_chunk(&st, TZ_CODEC_RAW), 77);
    to = make_file(&st.s, "to", 0, 1);
    fill(to, 0xee);
    CHECK_EQ(source_of(&st, &source), 0);
    sink = delta_of(to, false);
    run_one(&config, source, sink, NULL, &report);
    CHECK_EQ(report.error, -EBADMSG);
    CHECK_EQ(report.side, TZ_SIDE_SOURCE);
    CHECK_EQ(report.error_offset, first_chunk(&st, TZ_CODEC_RAW) * CHUNK);
    close(to);
    stored_remove(&st);
}

static void a_delta_writes_what_differs(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t w = 0; w < LENGTH_OF(worker_counts); w++) {
            tz_mover_config config = {.io = engines[e], .workers = worker_counts[w], .depth = 4, .chunk_size = CHUNK};
            uint64_t raw, zero;
            stored st;
            ended end;
            int to;

            stored_make(&st, w ? "/var/tmp" : "/dev/shm", &config);
            raw = first_chunk(&st, TZ_CODEC_RAW);
            zero = first_chunk(&st, TZ_CODEC_ZERO);

            /* Nothing there at all: everything but zeros is written, into a file that is too short for any look. */
            to = make_file(&st.s, "to", 0, 1);
            run_salvage(&config, salvage_of(&st, UINT32_MAX), delta_of(to, false), &end);
            CHECK_EQ(end.report.error, 0);
            CHECK(same_content(st.original, to));

            /* Everything there: nothing is read from packs, nothing written. */
            run_salvage(&config, salvage_of(&st, UINT32_MAX), delta_of(to, false), &end);
            CHECK_EQ(end.report.error, 0);
            CHECK_EQ(end.report.chunks_kept, CHUNKS);
            CHECK_EQ(end.report.bytes_kept, SIZE);
            CHECK_EQ(end.report.bytes_read, 0);
            CHECK_EQ(end.report.bytes_written, 0);
            CHECK_EQ(end.report.bytes_done, SIZE);

            /* A byte of data, one of zeros, the very last one, and more than there should be. */
            CHECK_EQ(pwrite(to, "\x5a", 1, (off_t)(raw * CHUNK + 5)), 1);
            CHECK_EQ(pwrite(to, "\x5a", 1, (off_t)((zero + 1) * CHUNK - 1)), 1);
            CHECK_EQ(pwrite(to, "x and more", 10, SIZE - 1), 10);
            run_salvage(&config, salvage_of(&st, UINT32_MAX), delta_of(to, false), &end);
            CHECK_EQ(end.report.error, 0);
            for (uint64_t i = 0; i < CHUNKS; i++)
                CHECK_EQ(end.outcomes[i],
                         i == raw || i == zero || i == CHUNKS - 1 ? TZ_OUTCOME_STORED : TZ_OUTCOME_KEPT);
            CHECK_EQ(end.report.chunks_kept, CHUNKS - 3);
            CHECK_EQ(end.report.bytes_read, CHUNK + length_of(CHUNKS - 1));
            CHECK(same_content(st.original, to));
            close(to);
            stored_remove(&st);
        }
}

static void a_delta_heals_and_keeps(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (int keep = 0; keep < 2; keep++) {
            tz_mover_config config = {.io = engines[e], .workers = 2, .depth = 4, .chunk_size = CHUNK};
            uint8_t expected[CHUNKS];
            uint32_t gone;
            stored st;
            ended end;
            int to;

            stored_make(&st, "/var/tmp", &config);
            to = make_file(&st.s, "to", 0, 1);
            run_salvage(&config, salvage_of(&st, UINT32_MAX), delta_of(to, keep), &end);
            gone = damage(&st, expected);

            /* The target has it all: whatever the packs have lost. */
            run_salvage(&config, salvage_of(&st, gone), delta_of(to, keep), &end);
            CHECK_EQ(end.report.error, 0);
            CHECK_EQ(end.report.chunks_kept, CHUNKS);
            CHECK_EQ(end.report.chunks_damaged, 0);
            CHECK(same_content(st.original, to));

            /* It has nothing of it. */
            fill(to, 0xee);
            run_salvage(&config, salvage_of(&st, gone), delta_of(to, keep), &end);
            check_outcomes(&end, expected);
            check_content(&st, to, expected, keep ? 0xee : 0);
            close(to);
            stored_remove(&st);
        }
}

/* Where a target ends, what an earlier chunk has left in the frame is not taken for its content. */
static void a_target_that_is_too_short_differs(void)
{
    tz_mover_config config = {.workers = 1, .depth = 1, .chunk_size = CHUNK};
    uint8_t *same = malloc(CHUNK);
    uint64_t raw;
    stored st;
    ended end;
    int to;

    stored_make(&st, "/var/tmp", &config);
    raw = first_chunk(&st, TZ_CODEC_RAW);
    for (uint64_t i = 0; i < CHUNKS - 1; i++)
        st.index[i] = st.index[raw];
    to = make_file(&st.s, "to", 0, 1);
    CHECK_EQ(pread(st.original, same, CHUNK, (off_t)(raw * CHUNK)), CHUNK);
    CHECK_EQ(pwrite(to, same, CHUNK, 0), CHUNK);
    run_salvage(&config, salvage_of(&st, UINT32_MAX), delta_of(to, false), &end);
    CHECK_EQ(end.report.error, 0);
    CHECK_EQ(end.report.chunks_damaged, 0);
    CHECK_EQ(end.report.chunks_kept, 1);
    for (uint64_t i = 0; i < CHUNKS - 1; i++) {
        uint8_t found[16];

        CHECK_EQ(end.outcomes[i], i ? TZ_OUTCOME_STORED : TZ_OUTCOME_KEPT);
        CHECK_EQ(pread(to, found, sizeof(found), (off_t)(i * CHUNK)), sizeof(found));
        CHECK(memcmp(found, same, sizeof(found)) == 0);
    }
    free(same);
    close(to);
    stored_remove(&st);
}

/* What a delta writes where the target is blank stays as sparse as in a new file. */
static void a_delta_leaves_holes(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = CHUNK};
    tz_transfer_report report;
    struct stat fresh, delta;
    tz_source *source;
    stored st;
    ended end;
    int a, b;

    stored_make(&st, "/var/tmp", &config);
    a = make_file(&st.s, "a", 0, 1);
    b = make_file(&st.s, "b", SIZE, 1);
    CHECK_EQ(ftruncate(b, 0), 0);
    CHECK_EQ(ftruncate(b, SIZE), 0);
    CHECK_EQ(source_of(&st, &source), 0);
    run_one(&config, source, image_sink_of(a, SIZE, true, 0), NULL, &report);
    run_salvage(&config, salvage_of(&st, UINT32_MAX), delta_of(b, false), &end);
    CHECK_EQ(end.report.error, 0);
    CHECK_EQ(end.report.bytes_written, report.bytes_written);
    CHECK(same_content(a, b));
    CHECK_EQ(fsync(a), 0);
    CHECK_EQ(fsync(b), 0);
    CHECK_EQ(fstat(a, &fresh), 0);
    CHECK_EQ(fstat(b, &delta), 0);
    CHECK_EQ(delta.st_blocks, fresh.st_blocks);
    close(a);
    close(b);
    stored_remove(&st);
}

/* Who knows no digests cannot tell what differs. */
static void a_delta_wants_digests(void)
{
    tz_mover_config config = {.workers = 1, .depth = 2, .chunk_size = CHUNK};
    tz_bufspace *space;
    tz_source *source;
    tz_mover *mover;
    tz_sink *sink;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", SIZE, 1);
    to = make_file(&s, "to", 0, 1);
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 6, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    source = file_source_of(from, 0);
    sink = delta_of(to, false);
    CHECK_EQ(tz_mover_add(mover, source, sink, NULL), -EINVAL);
    tz_source_destroy(source);
    tz_sink_destroy(sink);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    close(from);
    close(to);
    scratch_remove(&s);
}

int main(void)
{
    RUN(what_is_sound_is_salvaged);
    RUN_AS_ROOT(what_cannot_be_read_is_told_from_what_is_altered);
    RUN(without_salvage_damage_ends_the_transfer);
    RUN(a_delta_writes_what_differs);
    RUN(a_delta_heals_and_keeps);
    RUN(a_target_that_is_too_short_differs);
    RUN(a_delta_leaves_holes);
    RUN(a_delta_wants_digests);
    return 0;
}
