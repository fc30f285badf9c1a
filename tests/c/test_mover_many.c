/* SPDX-License-Identifier: Apache-2.0
 *
 * Many more transfers than areas: the line moves on as they end, small ones do not hold what large ones could use, an
 * empty one needs no area, and a cancel reaches those that are still in line.
 */
#include "mover_fixture.h"

#define SMALL  2000
#define FRAMES 8

static tz_sink *null_sink(void)
{
    tz_sink *sink;

    CHECK_EQ(tz_sink_null(&sink), 0);
    return sink;
}

/* Two large ones ahead of thousands of small ones, each eleventh of which is empty. */
static void add_all(tz_mover *mover, int large, int small, int empty)
{
    for (int i = 0; i < 2; i++)
        CHECK_EQ(tz_mover_add(mover, file_source_of(large, 0), null_sink(), NULL), i);
    for (int i = 2; i < SMALL + 2; i++)
        CHECK_EQ(tz_mover_add(mover, file_source_of(i % 11 ? small : empty, 0), null_sink(), NULL), i);
}

static void the_line_moves_on(void)
{
    for (size_t n = 0; n < 4; n++) {
        tz_mover_config config = {
            .io = engines[n / 2], .workers = worker_counts[n % 2], .depth = 4, .chunk_size = CHUNK};
        tz_transfer_report report[2], last;
        tz_bufspace_stats stats;
        tz_bufspace *space;
        tz_mover *mover;
        scratch s;
        int large, small, empty;

        scratch_make(&s, "/var/tmp");
        large = make_file(&s, "large", 40 * TZ_MIB, 1);
        small = make_file(&s, "small", 5000, 2);
        empty = make_file(&s, "empty", 0, 3);
        CHECK_EQ(tz_bufspace_create(&space, CHUNK, FRAMES, 2, 0), 0);
        CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
        add_all(mover, large, small, empty);
        CHECK_EQ(tz_mover_start(mover), 0);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        for (uint32_t i = 0; i < SMALL + 2; i++) {
            tz_mover_report_get(mover, i, &last);
            CHECK(last.done);
            CHECK_EQ(last.error, 0);
            CHECK_EQ(last.bytes_done, last.size);
            if (i < 2)
                report[i] = last;
        }
        CHECK_EQ(tz_mover_bytes_done(mover), 2 * 40 * TZ_MIB + (SMALL - SMALL / 11) * 5000);
        /* Nobody starved: with the large ones on their way, small ones had their turn. */
        tz_mover_report_get(mover, 3, &last);
        CHECK(last.ended_ns < report[0].ended_ns);
        tz_bufspace_stats_get(space, &stats);
        CHECK_EQ(stats.areas_total, SMALL + 2 - SMALL / 11);
        check_space_empty(space);
        tz_mover_destroy(mover);
        tz_bufspace_destroy(space);
        close(large);
        close(small);
        close(empty);
        scratch_remove(&s);
    }
}

static void a_cancel_reaches_the_line(void)
{
    tz_mover_config config = {.workers = 2, .depth = 2, .chunk_size = CHUNK, .rate = 2 * TZ_MIB};
    tz_transfer_report report;
    tz_bufspace *space;
    tz_mover *mover;
    scratch s;
    int large, small;

    scratch_make(&s, "/var/tmp");
    large = make_file(&s, "large", 40 * TZ_MIB, 1);
    small = make_file(&s, "small", 5000, 2);
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, FRAMES, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    add_all(mover, large, small, small);
    CHECK_EQ(tz_mover_start(mover), 0);
    CHECK_EQ(tz_mover_wait(mover, 50 * 1000000), 0);
    tz_mover_cancel(mover);
    CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
    tz_mover_report_get(mover, SMALL + 1, &report);
    CHECK_EQ(report.error, -ECANCELED);
    check_space_empty(space);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    close(large);
    close(small);
    scratch_remove(&s);
}

/* A stream that nobody reads holds its transfer; all others go on, one area after the other. */
static void a_stuck_one_holds_up_no_other(void)
{
    tz_mover_config config = {.depth = 4, .chunk_size = CHUNK};
    tz_transfer_report report = {.done = false};
    tz_bufspace *space;
    tz_mover *mover;
    tz_sink *stuck;
    scratch s;
    int large, small, pipes[2];

    scratch_make(&s, "/var/tmp");
    large = make_file(&s, "large", 0, 1);
    CHECK_EQ(ftruncate(large, 10 * TZ_MIB), 0);
    small = make_file(&s, "small", 5000, 2);
    CHECK_EQ(pipe2(pipes, O_CLOEXEC), 0);
    CHECK_EQ(tz_sink_stream(&stuck, pipes[1]), 0);
    CHECK_EQ(tz_bufspace_create(&space, CHUNK, 4, 2, 0), 0);
    CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
    CHECK_EQ(tz_mover_add(mover, file_source_of(large, 0), stuck, NULL), 0);
    for (int i = 1; i <= 200; i++)
        CHECK_EQ(tz_mover_add(mover, file_source_of(small, 0), null_sink(), NULL), i);
    CHECK_EQ(tz_mover_start(mover), 0);
    for (uint32_t i = 1; i <= 200; i++) {
        for (int ms = 0; ms < 20000 && !report.done; ms++) {
            usleep(1000);
            tz_mover_report_get(mover, i, &report);
        }
        CHECK(report.done);
        CHECK_EQ(report.error, 0);
        report.done = false;
    }
    tz_mover_report_get(mover, 0, &report);
    CHECK(!report.done);
    tz_mover_destroy(mover);
    tz_bufspace_destroy(space);
    close(pipes[0]);
    close(pipes[1]);
    close(large);
    close(small);
    scratch_remove(&s);
}

int main(void)
{
    RUN(a_stuck_one_holds_up_no_other);
    RUN(the_line_moves_on);
    RUN(a_cancel_reaches_the_line);
    return 0;
}
