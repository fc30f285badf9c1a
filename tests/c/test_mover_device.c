/* SPDX-License-Identifier: Apache-2.0
 *
 * Block devices as targets and sources (loop devices, root): nothing is written beyond the size, what was there
 * is zeroed where the data is zero, a device too small is refused; and the rate limit.
 */
#include "loop_fixture.h"

#define SIZE   (9 * CHUNK + 3 * 4096 + 700)
#define DEVICE (12 * CHUNK)

static void devices_as_target_and_source(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++) {
        tz_mover_config config = {.io = engines[e], .workers = 2, .depth = 4, .chunk_size = CHUNK};
        tz_transfer_report report;
        uint8_t *before, *after, *data;
        uint64_t size;
        loop_device loop;
        tz_source *source;
        tz_file file;
        scratch s;
        int from, backing, back;

        scratch_make(&s, "/var/tmp");
        from = make_file(&s, "from", SIZE, 5);
        backing = make_file(&s, "backing", 0, 1);
        before = malloc(DEVICE);
        memset(before, 0xee, DEVICE);
        CHECK_EQ(pwrite(backing, before, DEVICE, 0), DEVICE);
        loop_make(&loop, backing);

        run_one(&config, file_source_of(from, 0), image_sink_of(loop.fd, SIZE, false, 0), NULL, &report);
        CHECK_EQ(report.error, 0);
        CHECK(report.chunks_zero == 0 || report.bytes_written < SIZE);
        data = read_all(from, &size);
        after = malloc(DEVICE);
        CHECK_EQ(fsync(loop.fd), 0);
        CHECK_EQ(pread(loop.fd, after, DEVICE, 0), DEVICE);
        CHECK(memcmp(after, data, SIZE) == 0);
        CHECK(memcmp(after + SIZE, before, DEVICE - SIZE) == 0);

        /* And back: the first SIZE bytes of the device. */
        back = make_file(&s, "back", 0, 1);
        open_again(&file, loop.fd, 0);
        CHECK(file.block_device);
        CHECK_EQ(tz_source_file(&source, &file, SIZE), 0);
        run_one(&config, source, image_sink_of(back, SIZE, true, 0), NULL, &report);
        CHECK_EQ(report.error, 0);
        CHECK(same_content(from, back));
        loop_remove(&loop);
        free(before);
        free(after);
        free(data);
        close(from);
        close(back);
        close(backing);
        scratch_remove(&s);
    }
}

static void zeros_are_written_over_what_was_there(void)
{
    tz_mover_config config = {.workers = 2, .chunk_size = CHUNK};
    tz_transfer_report report;
    loop_device loop;
    uint8_t *data;
    scratch s;
    int from, backing;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", 0, 1);
    CHECK_EQ(ftruncate(from, SIZE), 0);
    backing = make_file(&s, "backing", 0, 1);
    data = malloc(DEVICE);
    memset(data, 0xee, DEVICE);
    CHECK_EQ(pwrite(backing, data, DEVICE, 0), DEVICE);
    loop_make(&loop, backing);
    run_one(&config, file_source_of(from, 0), image_sink_of(loop.fd, SIZE, false, 0), NULL, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.chunks_zero, report.chunks);
    CHECK_EQ(report.bytes_written, 700);
    CHECK_EQ(fsync(loop.fd), 0);
    CHECK_EQ(pread(loop.fd, data, DEVICE, 0), DEVICE);
    CHECK(tz_is_zero(data, SIZE));
    CHECK(data[SIZE] == 0xee && data[DEVICE - 1] == 0xee);
    loop_remove(&loop);
    free(data);
    close(from);
    close(backing);
    scratch_remove(&s);
}

static void a_device_too_small_is_refused(void)
{
    loop_device loop;
    tz_sink *sink;
    tz_file file;
    scratch s;
    int backing;

    scratch_make(&s, "/var/tmp");
    backing = make_file(&s, "backing", DEVICE, 1);
    loop_make(&loop, backing);
    open_again(&file, loop.fd, TZ_FILE_WRITE);
    CHECK_EQ(tz_sink_image(&sink, &file, DEVICE + 1, true), -ENOSPC);
    tz_file_close(&file);
    loop_remove(&loop);
    close(backing);
    scratch_remove(&s);
}

/* Not the speed of the machine is tested, but that the limit is kept, and that holes are free. */
static void the_rate_limit_is_kept(void)
{
    tz_mover_config config = {.workers = 3, .depth = 8, .chunk_size = CHUNK, .rate = 10 * TZ_MIB};
    tz_transfer_report report;
    uint8_t *data = malloc(TZ_MIB);
    uint64_t took;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    memset(data, 1, TZ_MIB);
    from = make_file(&s, "from", 0, 1);
    CHECK_EQ(ftruncate(from, 8 * TZ_GIB), 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pwrite(from, data, TZ_MIB, (off_t)(i * 2 * TZ_GIB)), TZ_MIB);
    to = make_file(&s, "to", 0, 1);
    run_one(&config, file_source_of(from, 0), image_sink_of(to, 8 * TZ_GIB, true, 0), NULL, &report);
    CHECK_EQ(report.error, 0);
    CHECK_EQ(report.bytes_read, 4 * TZ_MIB);
    took = report.ended_ns - report.started_ns;
    /* 4 MiB at 10 MiB/s; the burst and the last chunk are not waited for. Were holes not free, the wait above would
     * have given up long before the end. */
    CHECK(took > 200 * UINT64_C(1000000));
    free(data);
    close(from);
    close(to);
    scratch_remove(&s);
}

int main(void)
{
    RUN_AS_ROOT(devices_as_target_and_source);
    RUN_AS_ROOT(zeros_are_written_over_what_was_there);
    RUN_AS_ROOT(a_device_too_small_is_refused);
    RUN(the_rate_limit_is_kept);
    return 0;
}
