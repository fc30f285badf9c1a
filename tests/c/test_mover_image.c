/* SPDX-License-Identifier: Apache-2.0
 *
 * File to image: sizes around every edge, holes, both engines, several workers, fresh and used targets, on
 * disk and in memory; the errors of either side; cancel.
 */
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "mover_fixture.h"

static const uint64_t sizes[] = {0,     1,         511,           4096,          4097,
                                 CHUNK, CHUNK - 1, CHUNK + 12345, 5 * CHUNK + 1, 12 * CHUNK + 4096 * 3};

static void copy_once(scratch *s, uint64_t size, const tz_mover_config *config, bool fresh, unsigned flags)
{
    int from = make_file(s, "from", size, size + config->workers), to;
    tz_transfer_report report;
    struct stat st;

    to = fresh ? make_file(s, "to", 0, 1) : make_file(s, "to", size + 70000, 99);
    run_one(config, file_source_of(from, flags), image_sink_of(to, size, fresh, flags), NULL, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.bytes_done, size);
    CHECK_EQ(report.chunks_direct, report.chunks);
    CHECK(report.bytes_written <= size);
    CHECK(same_content(from, to));
    CHECK_EQ(fstat(to, &st), 0);
    CHECK_EQ(st.st_size, size);
    close(from);
    close(to);
}

static void copy_all(const char *base)
{
    scratch s;

    scratch_make(&s, base);
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t w = 0; w < LENGTH_OF(worker_counts); w++)
            for (size_t i = 0; i < LENGTH_OF(sizes); i++) {
                tz_mover_config config = {
                    .io = engines[e], .workers = worker_counts[w], .depth = 4, .chunk_size = CHUNK};

                copy_once(&s, sizes[i], &config, true, 0);
                copy_once(&s, sizes[i], &config, false, i % 2 ? TZ_FILE_BUFFERED : 0);
            }
    scratch_remove(&s);
}

static void copies_on_disk(void)
{
    copy_all("/var/tmp");
}

static void copies_in_memory(void)
{
    copy_all("/dev/shm");
}

static void holes_are_neither_read_nor_written(void)
{
    tz_mover_config config = {.io = TZ_IO_AUTO, .workers = 2, .chunk_size = CHUNK};
    tz_transfer_report report;
    struct stat st;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", 0, 1);
    CHECK_EQ(ftruncate(from, 4 * TZ_GIB), 0);
    CHECK_EQ(pwrite(from, "x", 1, 3 * TZ_GIB), 1);
    CHECK_EQ(fsync(from), 0);
    to = make_file(&s, "to", 0, 1);
    run_one(&config, file_source_of(from, 0), image_sink_of(to, 4 * TZ_GIB, true, 0), NULL, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.chunks_zero, report.chunks - 1);
    CHECK(report.bytes_read <= 64 * TZ_KIB);
    CHECK_EQ(report.bytes_written, 4096);
    CHECK_EQ(fstat(to, &st), 0);
    CHECK_EQ(st.st_size, 4 * TZ_GIB);
    CHECK((uint64_t)st.st_blocks * 512 <= 64 * TZ_KIB);
    close(from);
    close(to);
    scratch_remove(&s);
}

/* Half of `size` as data: `grain` bytes of it at every other place, the rest holes or written zeros. */
static int make_half_empty(scratch *s, uint64_t size, uint64_t grain, bool holes)
{
    int fd = make_file(s, "from", 0, 1);
    uint8_t *data = malloc(grain), *zeros = calloc(1, grain);

    CHECK(data && zeros);
    memset(data, 0x5a, grain);
    for (uint64_t at = 0; at < size; at += grain)
        if (at / grain % 2)
            CHECK_EQ(pwrite(fd, data, grain, (off_t)at), grain);
        else if (!holes)
            CHECK_EQ(pwrite(fd, zeros, grain, (off_t)at), grain);
    CHECK_EQ(ftruncate(fd, (off_t)size), 0);
    CHECK_EQ(fsync(fd), 0);
    free(data);
    free(zeros);
    return fd;
}

static void zeros_within_chunks_take_no_space_on_a_fresh_target(void)
{
    static const uint64_t grains[] = {32 * TZ_KIB, 64 * TZ_KIB, CHUNK, 2 * CHUNK};
    const uint64_t size = 16 * CHUNK;

    for (size_t i = 0; i < 2 * LENGTH_OF(grains); i++) {
        tz_mover_config config = {.io = engines[i % 2], .workers = 2, .depth = 4, .chunk_size = CHUNK};
        tz_transfer_report report;
        struct stat st;
        scratch s;
        int from, to;

        scratch_make(&s, "/var/tmp");
        from = make_half_empty(&s, size, grains[i / 2], i % 2);
        for (int fresh = 1; fresh >= 0; fresh--) {
            to = fresh ? make_file(&s, "to", 0, 1) : make_file(&s, "to", size, 99);
            run_one(&config, file_source_of(from, 0), image_sink_of(to, size, fresh, 0), NULL, &report);
            CHECK_EQ(report.error, 0);
            CHECK(same_content(from, to));
            if (fresh) {
                CHECK_EQ(report.bytes_written, size / 2);
                CHECK_EQ(fstat(to, &st), 0);
                CHECK((uint64_t)st.st_blocks * 512 <= size / 2 + 64 * TZ_KIB);
            }
            close(to);
        }
        close(from);
        scratch_remove(&s);
    }
}

/* One request instead of several: zeros between data that are not worth one, in the source and in the target. */
static void short_gaps_are_bridged(void)
{
    tz_mover_config config = {.depth = 4, .chunk_size = CHUNK};
    uint8_t data[4096];
    tz_transfer_report report;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", 0, 1);
    CHECK_EQ(ftruncate(from, 2 * CHUNK), 0);
    memset(data, 1, sizeof(data));
    /* A gap of 4 KiB, one of more than 64 KiB, and a hole up to the end of the chunk. */
    CHECK_EQ(pwrite(from, data, 4096, 0), 4096);
    CHECK_EQ(pwrite(from, data, 4096, 8192), 4096);
    CHECK_EQ(pwrite(from, data, 4096, 130 * TZ_KIB), 4096);
    CHECK_EQ(fsync(from), 0);
    to = make_file(&s, "to", 0, 1);
    run_one(&config, file_source_of(from, 0), image_sink_of(to, 2 * CHUNK, true, 0), NULL, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.bytes_read, 192 * TZ_KIB);
    CHECK_EQ(report.bytes_written, 12 * TZ_KIB + 8 * TZ_KIB);
    CHECK(same_content(from, to));
    close(from);
    close(to);
    scratch_remove(&s);
}

static void a_source_cut_short_is_an_error(void)
{
    tz_mover_config config = {.chunk_size = CHUNK};
    tz_transfer_report report;
    scratch s;

    scratch_make(&s, "/var/tmp");
    for (int hole = 0; hole < 2; hole++) {
        int from = make_file(&s, "from", 4 * CHUNK, 5), to = make_file(&s, "to", 0, 1);
        tz_source *source;

        CHECK_EQ(ftruncate(from, 0), 0);
        if (!hole) {
            uint8_t *data = malloc(4 * CHUNK);

            memset(data, 7, 4 * CHUNK);
            CHECK_EQ(pwrite(from, data, 4 * CHUNK, 0), 4 * CHUNK);
            free(data);
        }
        CHECK_EQ(ftruncate(from, 4 * CHUNK), 0);
        source = file_source_of(from, 0);
        CHECK_EQ(ftruncate(from, 2 * CHUNK), 0);
        run_one(&config, source, image_sink_of(to, 4 * CHUNK, true, 0), NULL, &report);
        CHECK_EQ(report.error, -ENODATA);
        CHECK_EQ(report.side, TZ_SIDE_SOURCE);
        close(from);
        close(to);
    }
    scratch_remove(&s);
}

static void a_full_target_fails_its_transfer_alone(void)
{
    tz_mover_config config = {.workers = 2, .depth = 4, .chunk_size = CHUNK};
    tz_transfer_report full, good;
    tz_bufspace *space;
    tz_mover *mover;
    scratch s, tiny;
    int from, to, other;
    uint8_t *data = malloc(4 * TZ_MIB);

    scratch_make(&s, "/var/tmp");
    scratch_make(&tiny, "/var/tmp");
    close(tiny.fd);
    CHECK_EQ(mount("tmpfs", tiny.path, "tmpfs", 0, "size=1m"), 0);
    tiny.fd = open(tiny.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    memset(data, 3, 4 * TZ_MIB);
    from = make_file(&s, "from", 0, 1);
    CHECK_EQ(pwrite(from, data, 4 * TZ_MIB, 0), 4 * TZ_MIB);
    to = make_file(&tiny, "to", 0, 1);
    other = make_file(&s, "other", 0, 1);

    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 8, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_mover_add(mover, file_source_of(from, 0), image_sink_of(to, 4 * TZ_MIB, true, 0), NULL), 0);
    CHECK_EQ(tz_mover_add(mover, file_source_of(from, 0), image_sink_of(other, 4 * TZ_MIB, true, 0), NULL), 1);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    tz_mover_report_get(mover, 0, &full);
    tz_mover_report_get(mover, 1, &good);
    CHECK_EQ(full.error, -ENOSPC);
    CHECK_EQ(full.side, TZ_SIDE_SINK);
    CHECK_EQ(full.error_offset % CHUNK, 0);
    CHECK_EQ(tz_mover_sync(mover, 0), -ENOSPC);
    CHECK_EQ(good.error, 0);
    check_space_empty(space);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    CHECK(same_content(from, other));
    close(from);
    close(to);
    close(other);
    free(data);
    close(tiny.fd);
    CHECK_EQ(umount2(tiny.path, 0), 0);
    CHECK_EQ(rmdir(tiny.path), 0);
    scratch_remove(&s);
}

static void a_file_size_limit_is_reported(void)
{
    tz_mover_config config = {.io = TZ_IO_THREADS, .depth = 4, .chunk_size = CHUNK};
    struct rlimit before, low;
    tz_transfer_report report;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", 0, 1);
    for (uint64_t at = 0; at < 8 * CHUNK; at += 4096)
        CHECK_EQ(pwrite(from, s.path, 100, (off_t)at), 100);
    CHECK_EQ(ftruncate(from, 8 * CHUNK), 0);
    to = make_file(&s, "to", 0, 1);
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    low = before;
    low.rlim_cur = 3 * CHUNK;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
    run_one(&config, file_source_of(from, 0), image_sink_of(to, 8 * CHUNK, true, 0), NULL, &report);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    CHECK_EQ(report.error, -EFBIG);
    CHECK_EQ(report.side, TZ_SIDE_SINK);
    CHECK(report.error_offset >= 3 * CHUNK);
    close(from);
    close(to);
    scratch_remove(&s);
}

static void many_transfers_wait_for_areas(void)
{
    tz_mover_config config = {.workers = 2, .depth = 3, .chunk_size = CHUNK};
    tz_bufspace *space;
    tz_mover *mover;
    int from[9], to[9];
    scratch s;

    scratch_make(&s, "/var/tmp");
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 4, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    for (int i = 0; i < 9; i++) {
        char name[2][20];
        uint64_t size = (uint64_t)i * 200000;

        snprintf(name[0], 20, "from%d", i);
        snprintf(name[1], 20, "to%d", i);
        from[i] = make_file(&s, name[0], size, (uint64_t)i);
        to[i] = make_file(&s, name[1], 0, 1);
        CHECK_EQ(tz_mover_add(mover, file_source_of(from[i], 0), image_sink_of(to[i], size, true, 0), NULL), i);
    }
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    check_space_empty(space);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    for (int i = 0; i < 9; i++) {
        CHECK(same_content(from[i], to[i]));
        close(from[i]);
        close(to[i]);
    }
    scratch_remove(&s);
}

static void cancel_gives_everything_back(void)
{
    tz_mover_config config = {.workers = 3, .depth = 4, .chunk_size = CHUNK, .rate = TZ_MIB};
    scratch s;

    scratch_make(&s, "/var/tmp");
    for (int late = 0; late < 2; late++) {
        int from = make_file(&s, "from", 64 * CHUNK, 11), to = make_file(&s, "to", 0, 1);
        tz_transfer_report report;
        tz_bufspace *space;
        tz_mover *mover;

        CHECK_EQ(tz_bufspace_create(&space, CHUNK, 4, 2, 0), 0);
        CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
        for (int i = 0; i < 4; i++)
            CHECK_EQ(tz_mover_add(mover, file_source_of(from, 0), image_sink_of(to, 64 * CHUNK, true, 0), NULL), i);
        CHECK_EQ(tz_mover_start(mover), 0);
        CHECK_EQ(tz_mover_wait(mover, late ? 50000000 : 0), 0);
        tz_mover_cancel(mover);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        check_space_empty(space);
        for (uint32_t i = 0; i < 4; i++) {
            tz_mover_report_get(mover, i, &report);
            CHECK_EQ(report.error, -ECANCELED);
            CHECK(report.bytes_done < report.size);
        }
        tz_mover_destroy(mover);
        tz_bufspace_destroy(space);
        close(from);
        close(to);
    }
    scratch_remove(&s);
}

static void what_is_not_started_is_destroyed_cleanly(void)
{
    tz_mover_config config = {.chunk_size = CHUNK};
    tz_bufspace *space;
    tz_mover *mover;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", 2 * CHUNK, 11);
    to = make_file(&s, "to", 0, 1);
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 4, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_mover_add(mover, file_source_of(from, 0), image_sink_of(to, 2 * CHUNK, true, 0), NULL), 0);
    CHECK_EQ(tz_mover_wait(mover, 0), 0);
    /* The length it is to have, so that no write has to make it longer. */
    CHECK_EQ(lseek(to, 0, SEEK_END), 2 * CHUNK);
    tz_mover_destroy(mover);
    config.chunk_size = 2 * CHUNK;
    CHECK_EQ(tz_mover_create(&mover, space, &config), -EINVAL);
    config.chunk_size = 1000;
    CHECK_EQ(tz_mover_create(&mover, space, &config), -EINVAL);
    check_space_empty(space);
    tz_bufspace_destroy(space);
    close(from);
    close(to);
    scratch_remove(&s);
}

int main(void)
{
    RUN(copies_on_disk);
    RUN(copies_in_memory);
    RUN(holes_are_neither_read_nor_written);
    RUN(zeros_within_chunks_take_no_space_on_a_fresh_target);
    RUN(short_gaps_are_bridged);
    RUN(a_source_cut_short_is_an_error);
    RUN_AS_ROOT(a_full_target_fails_its_transfer_alone);
    RUN(a_file_size_limit_is_reported);
    RUN(many_transfers_wait_for_areas);
    RUN(cancel_gives_everything_back);
    RUN(what_is_not_started_is_destroyed_cleanly);
    return 0;
}
