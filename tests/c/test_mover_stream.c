/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams: in order whatever the reads do, slow readers, readers that go away or never read, and cancel
 * without a hang; pipes, sockets, regular files at a position.
 */
#include <pthread.h>
#include <sys/socket.h>

#include "mover_fixture.h"

#define SIZE (11 * CHUNK + 777)

typedef struct reader {
    int fd;
    uint64_t most; /* bytes to read before closing */
    uint64_t seed;
    uint8_t *data;
    uint64_t got;
    pthread_t thread;
} reader;

/* In odd small pieces, sometimes with a nap. */
static void *read_slowly(void *arg)
{
    reader *r = arg;
    uint64_t state = r->seed * 2 + 1;
    ssize_t n = 1;

    while (n > 0 && r->got < r->most) {
        uint64_t piece = 1 + next_random(&state) % 60000;

        n = read(r->fd, r->data + r->got, tz_min_u64(piece, r->most - r->got));
        if (n > 0)
            r->got += (uint64_t)n;
        if (piece % 16 == 0)
            usleep(1000);
    }
    close(r->fd);
    return NULL;
}

static void reader_start(reader *r, int fd, uint64_t most)
{
    *r = (reader){.fd = fd, .most = most, .seed = most, .data = malloc(most + 1)};
    CHECK_EQ(pthread_create(&r->thread, NULL, read_slowly, r), 0);
}

static bool reader_matches(reader *r, int original)
{
    uint64_t size;
    uint8_t *data;
    bool same;

    CHECK_EQ(pthread_join(r->thread, NULL), 0);
    data = read_all(original, &size);
    same = r->got == size && memcmp(r->data, data, size) == 0;
    free(data);
    free(r->data);
    return same;
}

static tz_sink *stream_of(int fd)
{
    tz_sink *sink;
    int flags = fcntl(fd, F_GETFL);

    CHECK_EQ(tz_sink_stream(&sink, fd), 0);
    CHECK_EQ(fcntl(fd, F_GETFL), flags);
    return sink;
}

static void in_order(bool socket)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++)
        for (size_t w = 0; w < LENGTH_OF(worker_counts); w++) {
            tz_mover_config config = {.io = engines[e], .workers = worker_counts[w], .depth = 6, .chunk_size = CHUNK};
            tz_transfer_report report;
            scratch s;
            reader r;
            int from, fds[2];
            tz_sink *sink;

            scratch_make(&s, "/var/tmp");
            from = make_file(&s, "from", SIZE, w + 20);
            CHECK_EQ(socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, fds) : pipe(fds), 0);
            sink = stream_of(fds[1]);
            close(fds[1]);
            reader_start(&r, fds[0], SIZE + 1);
            run_one(&config, file_source_of(from, 0), sink, NULL, &report);
            CHECK_EQ(report.error, 0);
            CHECK_EQ(report.bytes_written, SIZE);
            CHECK(reader_matches(&r, from));
            close(from);
            scratch_remove(&s);
        }
}

static void pipes_in_order(void)
{
    in_order(false);
}

static void sockets_in_order(void)
{
    in_order(true);
}

static void a_reader_that_leaves_is_an_error(void)
{
    for (int socket = 0; socket < 2; socket++) {
        tz_mover_config config = {.workers = 2, .chunk_size = CHUNK};
        tz_transfer_report report;
        scratch s;
        reader r;
        int from, fds[2];
        tz_sink *sink;

        scratch_make(&s, "/var/tmp");
        from = make_file(&s, "from", SIZE, 3);
        CHECK_EQ(socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, fds) : pipe(fds), 0);
        sink = stream_of(fds[1]);
        reader_start(&r, fds[0], CHUNK + 5);
        run_one(&config, file_source_of(from, 0), sink, NULL, &report);
        CHECK(report.error == -EPIPE || (socket && report.error == -ECONNRESET));
        CHECK_EQ(report.side, TZ_SIDE_SINK);
        CHECK(!reader_matches(&r, from));
        close(from);
        close(fds[1]);
        scratch_remove(&s);
    }
}

/* Nobody ever reads: the other transfer goes on, and cancel ends this one. */
static void a_stuck_reader_holds_up_nobody(void)
{
    for (size_t e = 0; e < LENGTH_OF(engines); e++) {
        tz_mover_config config = {.io = engines[e], .workers = 1, .depth = 8, .chunk_size = CHUNK};
        tz_transfer_report stuck, good;
        tz_bufspace *space;
        tz_mover *mover;
        int from, to, fds[2];
        scratch s;

        scratch_make(&s, "/var/tmp");
        from = make_file(&s, "from", 40 * CHUNK, 3);
        to = make_file(&s, "to", 0, 3);
        CHECK_EQ(pipe(fds), 0);
        CHECK_EQ(tz_bufspace_create(&space, CHUNK, 40, 2, 0), 0);
        CHECK_EQ(tz_mover_create(&mover, space, &config), 0);
        CHECK_EQ(tz_mover_add(mover, file_source_of(from, 0), stream_of(fds[1]), NULL), 0);
        CHECK_EQ(tz_mover_add(mover, file_source_of(from, 0), image_sink_of(to, 40 * CHUNK, true, 0), NULL), 1);
        CHECK_EQ(tz_mover_start(mover), 0);
        do {
            CHECK_EQ(tz_mover_wait(mover, 1000000), 0);
            tz_mover_report_get(mover, 1, &good);
        } while (!good.done);
        CHECK_EQ(good.error, 0);
        CHECK(same_content(from, to));
        tz_mover_cancel(mover);
        CHECK_EQ(tz_mover_wait(mover, WAIT_NS), 1);
        tz_mover_report_get(mover, 0, &stuck);
        CHECK_EQ(stuck.error, -ECANCELED);
        check_space_empty(space);
        tz_mover_destroy(mover);
        tz_bufspace_destroy(space);
        close(fds[0]);
        close(fds[1]);
        close(from);
        close(to);
        scratch_remove(&s);
    }
}

static void a_file_is_written_at_its_position(void)
{
    tz_mover_config config = {.workers = 1, .chunk_size = CHUNK};
    tz_transfer_report report;
    uint8_t *whole, *data;
    uint64_t size;
    scratch s;
    int from, to;

    scratch_make(&s, "/var/tmp");
    from = make_file(&s, "from", SIZE, 3);
    to = make_file(&s, "to", 0, 3);
    CHECK_EQ(write(to, "head", 4), 4);
    run_one(&config, file_source_of(from, 0), stream_of(to), NULL, &report);
    CHECK_EQ(report.error, 0);
    whole = read_all(to, &size);
    CHECK_EQ(size, SIZE + 4);
    data = read_all(from, &size);
    CHECK(memcmp(whole, "head", 4) == 0 && memcmp(whole + 4, data, SIZE) == 0);
    free(whole);
    free(data);
    close(from);
    close(to);
    scratch_remove(&s);
}

int main(void)
{
    RUN(pipes_in_order);
    RUN(sockets_in_order);
    RUN(a_reader_that_leaves_is_an_error);
    RUN(a_stuck_reader_holds_up_nobody);
    RUN(a_file_is_written_at_its_position);
    return 0;
}
