/* SPDX-License-Identifier: Apache-2.0
 *
 * What a malformed, vanishing or lazy client gets, and that nobody else notices it. With both engines.
 */
#include "nbd_client.h"
#include "tz/gate.h"

#define SIZE (4 * TZ_MIB)

static tz_io_kind engine;

/* Somebody else's connection still works. */
static void still_serves(served *server)
{
    int fd = attach(server, 0);
    uint8_t wrote[4096], got[4096];

    pattern(wrote, 8192, sizeof(wrote), 77);
    write_ok(fd, 1, 8192, wrote, sizeof(wrote));
    read_ok(fd, 2, 8192, got, sizeof(got));
    CHECK(memcmp(wrote, got, sizeof(got)) == 0);
    ask(fd, 0, DISC, 3, 0, 0, NULL);
    expect_end(fd);
}

/* Each is answered with its error, and the stream stays in step: the next request is answered, too. */
static void what_cannot_be_done_is_refused_in_step(void)
{
    static const struct {
        int flags, command;
        uint64_t offset;
        uint32_t length, error;
    } cases[] = {
        {0, READ, SIZE, 1, 22},
        {0, READ, SIZE - 1, 2, 22},
        {0, READ, UINT64_MAX, 2, 22},
        {0, READ, UINT64_MAX - 1, UINT32_MAX, 22},
        {0, READ, 0, TZ_NBD_MAX_PAYLOAD + 1, 22},
        {DF, READ, 0, 512, 22}, /* not without structured replies */
        {NO_HOLE, READ, 0, 512, 22},
        {0, WRITE, SIZE, 1, 28},
        {0, WRITE, SIZE - 1, 200000, 28},
        {0, WRITE, UINT64_MAX, 5, 28},
        {DF, WRITE, 0, 100000, 22},
        {32, WRITE, 0, 7, 22},
        {0x8000, FLUSH, 0, 0, 22},
        {0, FLUSH, 0, 512, 22},
        {0, FLUSH, 512, 0, 22},
        {0, TRIM, SIZE, 1, 22},
        {0, TRIM, 0, UINT32_MAX, 22},
        {NO_HOLE, TRIM, 0, 512, 22},
        {0, CACHE, SIZE - 5, 6, 22},
        {0, ZEROES, SIZE, 1, 28},
        {0, ZEROES, 1, UINT32_MAX, 28},
        {REQ_ONE, ZEROES, 0, 512, 22},
        {0, STATUS, 0, 512, 22},
        {0, 8, 0, 512, 22},
        {0, 0xffff, 0, 512, 22},
        /* and these are fine */
        {0, READ, SIZE, 0, 0},
        {0, WRITE, 0, 0, 0},
        {0, TRIM, 5, 0, 0},
        {FUA, ZEROES, 5, 0, 0},
        {FUA, FLUSH, 0, 0, 0},
    };
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    static uint8_t payload[200000], got[4096], zeros[4096];

    memset(payload, 0x25, sizeof(payload));
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        ask(fd, cases[i].flags, cases[i].command, i, cases[i].offset, cases[i].length,
            cases[i].command == WRITE ? payload : NULL);
        expect_simple(fd, i, cases[i].error);
    }
    read_ok(fd, 99, 0, got, sizeof(got));
    CHECK(memcmp(got, zeros, sizeof(got)) == 0);
    CHECK_EQ(stats_of(&server).protocol_errors, 0);
    close(fd);
    unserve(&server);
}

static void a_read_only_connection_updates_nothing(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, TZ_NBD_READ_ONLY);
    static uint8_t payload[100000], got[4096], zeros[4096];

    memset(payload, 0xff, sizeof(payload));
    ask(fd, 0, WRITE, 1, 0, sizeof(payload), payload);
    ask(fd, 0, TRIM, 2, 0, 4096, NULL);
    ask(fd, 0, ZEROES, 3, 0, 4096, NULL);
    ask(fd, 0, FLUSH, 4, 0, 0, NULL);
    for (uint64_t cookie = 1; cookie < 4; cookie++)
        expect_simple(fd, cookie, 1);
    expect_simple(fd, 4, 0);
    read_ok(fd, 5, 0, got, sizeof(got));
    CHECK(memcmp(got, zeros, sizeof(got)) == 0);
    close(fd);
    unserve(&server);
}

static void a_wrong_magic_ends_the_connection(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    uint8_t bytes[28];

    header(bytes, 0, READ, 1, 0, 512);
    bytes[3] ^= 1;
    send_bytes(fd, bytes, sizeof(bytes));
    expect_end(fd);
    CHECK_EQ(stats_of(&server).protocol_errors, 1);
    still_serves(&server);
    unserve(&server);
}

/* What came before the nonsense is still done and answered. */
static void requests_before_a_violation_are_answered(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    uint8_t bytes[56 + 4096];

    header(bytes, 0, WRITE, 5, 0, 4096);
    pattern(bytes + 28, 0, 4096, 2);
    memset(bytes + 28 + 4096, 'x', 28);
    send_bytes(fd, bytes, sizeof(bytes));
    expect_simple(fd, 5, 0);
    expect_end(fd);
    still_serves(&server);
    unserve(&server);
}

static void an_oversized_payload_ends_the_connection(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, TZ_NBD_STRUCTURED);

    ask(fd, 0, WRITE, 1, 0, TZ_NBD_MAX_PAYLOAD + 1, NULL);
    expect_end(fd);
    fd = attach(&server, 0);
    ask(fd, 0, WRITE, 1, 0, UINT32_MAX, NULL);
    expect_end(fd);
    CHECK_EQ(stats_of(&server).protocol_errors, 2);
    still_serves(&server);
    unserve(&server);
}

/* Cut off after `cut` bytes of a write of `length`: nothing is written, nothing stays behind. */
static void vanish_after(served *server, uint32_t length, size_t cut)
{
    static uint8_t bytes[28 + 300000];
    int fd = attach(server, 0);

    header(bytes, 0, WRITE, 1, 0, length);
    memset(bytes + 28, 0xee, length);
    send_bytes(fd, bytes, cut);
    close(fd);
    wait_connections(server, 0);
}

static void a_client_may_vanish_anywhere(void)
{
    static const size_t cuts[] = {0, 1, 27, 28, 29, 28 + 4096, 28 + 150000, 28 + 299999};
    served server = serve(engine, SIZE, false);
    static uint8_t got[4096], zeros[4096];
    int fd;

    for (unsigned i = 0; i < sizeof(cuts) / sizeof(*cuts); i++)
        vanish_after(&server, 300000, cuts[i]);
    vanish_after(&server, 100, 28 + 50);
    fd = attach(&server, 0);
    read_ok(fd, 1, 0, got, sizeof(got));
    CHECK(memcmp(got, zeros, sizeof(got)) == 0);
    close(fd);
    still_serves(&server);
    unserve(&server);
}

/* A client that is gone ends none of its updates half-way: each was made whole, or had not begun. */
static void updates_of_a_vanished_client_are_whole(void)
{
    enum {
        COUNT = 64
    };
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    static uint8_t bytes[COUNT][28 + 4096], got[4096], zeros[4096];

    for (int i = 0; i < COUNT; i++) {
        header(bytes[i], 0, WRITE, (uint64_t)i, (uint64_t)i * 4096, 4096);
        pattern(bytes[i] + 28, (uint64_t)i * 4096, 4096, 5);
    }
    send_bytes(fd, bytes, sizeof(bytes));
    close(fd);
    wait_connections(&server, 0);
    fd = attach(&server, 0);
    for (int i = 0; i < COUNT; i++) {
        read_ok(fd, 1, (uint64_t)i * 4096, got, sizeof(got));
        CHECK(memcmp(got, bytes[i] + 28, sizeof(got)) == 0 || memcmp(got, zeros, sizeof(got)) == 0);
    }
    close(fd);
    unserve(&server);
}

static void disconnecting_answers_what_is_in_flight(void)
{
    enum {
        COUNT = 32
    };
    served server = serve(engine, SIZE, false);

    for (int half = 0; half < 2; half++) { /* with DISC, and by only ending the sending side */
        int fd = attach(&server, 0);
        uint8_t got[4096];

        for (int i = 0; i < COUNT; i++)
            ask(fd, 0, READ, (uint64_t)i, (uint64_t)i * 4096, 4096, NULL);
        if (half)
            shutdown(fd, SHUT_WR);
        else
            ask(fd, 0, DISC, 0, 0, 0, NULL);
        for (int i = 0; i < COUNT; i++) {
            uint64_t cookie;

            CHECK_EQ(simple(fd, &cookie), 0);
            recv_bytes(fd, got, sizeof(got));
        }
        expect_end(fd);
        wait_connections(&server, 0);
    }
    unserve(&server);
}

/* Asks for far more than the socket holds and takes nothing. Others are served; shutting down cuts it off. */
static void one_that_never_reads(void (*pair)(int ends[2]))
{
    served server = serve(engine, SIZE, false);
    uint8_t bytes[28];
    int ends[2], fd;

    pair(ends);
    fd = attach_ends(&server, ends, (tz_nbd_config){.max_requests = 16});
    header(bytes, 0, READ, 1, 0, 1048576);
    for (int i = 0; i < 40; i++)
        send_bytes(fd, bytes, sizeof(bytes));
    for (int i = 0; i < 20; i++)
        still_serves(&server);
    CHECK_EQ(tz_nbd_close_all(server.reactor, server.volume, UINT64_C(400000000)), 0);
    unserve(&server);
    close(fd);
}

static void a_client_that_never_reads_blocks_only_itself(void)
{
    one_that_never_reads(unix_pair);
    one_that_never_reads(tcp_pair);
}

static void closing_ends_every_connection_and_takes_no_more(void)
{
    served server = serve(engine, SIZE, false);
    int idle = attach(&server, 0), halfway = attach(&server, 0), busy = attach(&server, 0), ends[2];
    static uint8_t payload[100000];
    tz_nbd_config config = {0};

    ask(halfway, 0, WRITE, 1, 0, 100001, NULL);
    send_bytes(halfway, payload, sizeof(payload));
    write_ok(busy, 1, 0, payload, sizeof(payload));
    CHECK_EQ(tz_nbd_close_all(server.reactor, server.volume, UINT64_C(10000000000)), 0);
    CHECK_EQ(stats_of(&server).connections, 0);
    expect_end(idle);
    expect_end(halfway);
    expect_end(busy);

    config.flags = TZ_NBD_BASE_ALLOCATION; /* makes no sense alone */
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    CHECK_EQ(tz_nbd_adopt(server.reactor, server.volume, ends[0], &config), -EINVAL);
    CHECK(fcntl(ends[0], F_GETFD) >= 0); /* still ours */
    close(ends[0]);
    close(ends[1]);
    config.flags = 0;
    CHECK_EQ(tz_nbd_adopt(server.reactor, server.volume, -1, &config), -EINVAL);
    unserve(&server);
}

typedef struct held_query {
    tz_volume *volume;
    uint64_t held;
} held_query;

static int ask_held(void *arg)
{
    held_query *query = arg;
    tz_volume_stats stats;

    tz_volume_stats_get(query->volume, &stats);
    query->held = stats.held;
    return 0;
}

static void wait_held(served *server, uint64_t count)
{
    held_query query = {.volume = server->volume};

    for (int i = 0; query.held != count; i++) {
        CHECK(i < TIMEOUT_S * 1000);
        CHECK_EQ(tz_reactor_call(server->reactor, ask_held, &query), 0);
        usleep(1000);
    }
}

/* An update held at a closed gate outlives its client, and holds up the closing of the connections, not the server. */
static void a_held_update_outlives_its_client(void)
{
    served server = serve(engine, SIZE, false);
    tz_session_config config = {.track_size = 65536, .memory_bytes = 1048576, .file_fd = -1};
    tz_session *session;
    tz_suspension *suspension;
    tz_session_report report;
    uint8_t wrote[5000], got[5000];
    int fd = attach(&server, 0);

    CHECK_EQ(tz_session_prepare(&session, server.volume, &config), 0);
    CHECK_EQ(tz_suspension_create(&suspension, &session, 1), 0);
    CHECK_EQ(tz_suspension_close(suspension, UINT64_C(1000000000) * TIMEOUT_S), 0);
    pattern(wrote, 100, sizeof(wrote), 6);
    ask(fd, 0, WRITE, 1, 100, sizeof(wrote), wrote);
    wait_held(&server, 1);
    close(fd);
    CHECK_EQ(tz_nbd_close_all(server.reactor, server.volume, 20000000), -ETIMEDOUT);
    CHECK_EQ(stats_of(&server).connections, 1);
    tz_suspension_abort(suspension);
    CHECK_EQ(tz_nbd_close_all(server.reactor, server.volume, UINT64_C(1000000000) * TIMEOUT_S), 0);

    fd = attach(&server, 0);
    read_ok(fd, 2, 100, got, sizeof(got));
    CHECK(memcmp(wrote, got, sizeof(got)) == 0);
    close(fd);
    tz_suspension_destroy(suspension);
    CHECK_EQ(tz_session_end(session, true, &report), 0);
    tz_session_destroy(session);
    unserve(&server);
}

/* With the gate closed, what was taken up stays; so the limits can be seen. */
static void no_more_is_taken_up_than_the_limits_allow(void)
{
    static const struct {
        tz_nbd_config config;
        uint64_t held;
    } cases[] = {
        {{.max_requests = 3}, 3},
        {{.max_bytes = 20000}, 2}, /* of 8 KiB each */
        {{.max_bytes = 1}, 1},
        {{.max_requests = 8, .max_bytes = 4 * TZ_MIB}, 8},
    };
    served server = serve(engine, SIZE, false);
    tz_session_config config = {.track_size = 65536, .memory_bytes = 1048576, .file_fd = -1};
    tz_session *session;
    static uint8_t payload[8192];

    CHECK_EQ(tz_session_prepare(&session, server.volume, &config), 0);
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        int fd = attach_as(&server, cases[i].config);
        tz_suspension *suspension;

        CHECK_EQ(tz_suspension_create(&suspension, &session, 1), 0);
        CHECK_EQ(tz_suspension_close(suspension, UINT64_C(1000000000) * TIMEOUT_S), 0);
        for (uint64_t n = 0; n < 10; n++)
            ask(fd, 0, WRITE, n, n * 65536, sizeof(payload), payload);
        wait_held(&server, cases[i].held);
        usleep(10000); /* time to take up one too many */
        wait_held(&server, cases[i].held);
        CHECK_EQ(stats_of(&server).requests, i * 10 + cases[i].held);
        tz_suspension_abort(suspension);
        for (int n = 0; n < 10; n++) {
            uint64_t cookie;

            CHECK_EQ(simple(fd, &cookie), 0);
        }
        tz_suspension_destroy(suspension);
        close(fd);
        wait_connections(&server, 0);
    }
    CHECK_EQ(tz_session_end(session, true, NULL), 0);
    tz_session_destroy(session);
    unserve(&server);
}

int main(void)
{
    alarm(240);
    for (engine = TZ_IO_URING; engine <= TZ_IO_THREADS; engine++) {
        if (!engine_here(engine))
            continue;
        RUN(what_cannot_be_done_is_refused_in_step);
        RUN(a_read_only_connection_updates_nothing);
        RUN(a_wrong_magic_ends_the_connection);
        RUN(requests_before_a_violation_are_answered);
        RUN(an_oversized_payload_ends_the_connection);
        RUN(a_client_may_vanish_anywhere);
        RUN(updates_of_a_vanished_client_are_whole);
        RUN(disconnecting_answers_what_is_in_flight);
        RUN(a_client_that_never_reads_blocks_only_itself);
        RUN(a_held_update_outlives_its_client);
        RUN(no_more_is_taken_up_than_the_limits_allow);
        RUN(closing_ends_every_connection_and_takes_no_more);
    }
    return 0;
}
