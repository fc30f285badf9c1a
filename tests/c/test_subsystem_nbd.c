/* SPDX-License-Identifier: Apache-2.0
 *
 * What a well-behaved client gets: data, replies, batches, limits. With both engines.
 */
#include "nbd_client.h"

#define SIZE (8 * TZ_MIB)

static tz_io_kind engine;

static void data_comes_back(void)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
    } ranges[] = {{0, 4096},           {4096, 65536}, {1000, 1},          {511, 1026}, {70000, 300001},
                  {SIZE - 4096, 4096}, {SIZE - 1, 1}, {1048576, 1048576}, {3, 2097152}};
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    static uint8_t wrote[2097152], got[2097152];

    for (unsigned i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
        pattern(wrote, ranges[i].offset, ranges[i].length, i);
        write_ok(fd, i, ranges[i].offset, wrote, ranges[i].length);
        read_ok(fd, i + 100, ranges[i].offset, got, ranges[i].length);
        CHECK(memcmp(wrote, got, ranges[i].length) == 0);
    }
    close(fd);
    unserve(&server);
}

/* All requests leave in one write, so that many are parsed from one receive. */
static void pipelined_requests_are_all_answered(void)
{
    enum {
        COUNT = 60,
        BYTES = 4096
    };
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    static uint8_t batch[COUNT * (28 + BYTES)], got[BYTES], want[BYTES];
    bool seen[COUNT] = {false};

    for (int i = 0; i < COUNT; i++) {
        header(batch + i * (28 + BYTES), 0, WRITE, (uint64_t)i, (uint64_t)i * BYTES, BYTES);
        pattern(batch + i * (28 + BYTES) + 28, (uint64_t)i * BYTES, BYTES, 3);
    }
    send_bytes(fd, batch, sizeof(batch));
    for (int i = 0; i < COUNT; i++) {
        uint64_t cookie;

        CHECK_EQ(simple(fd, &cookie), 0);
        CHECK(cookie < COUNT && !seen[cookie]);
        seen[cookie] = true;
    }
    for (int i = 0; i < COUNT; i++)
        header(batch + i * 28, 0, READ, (uint64_t)i, (uint64_t)i * BYTES, BYTES);
    send_bytes(fd, batch, COUNT * 28);
    for (int i = 0; i < COUNT; i++) {
        uint64_t cookie;

        CHECK_EQ(simple(fd, &cookie), 0);
        CHECK(cookie < COUNT && seen[cookie]);
        seen[cookie] = false;
        recv_bytes(fd, got, BYTES);
        pattern(want, cookie * BYTES, BYTES, 3);
        CHECK(memcmp(got, want, BYTES) == 0);
    }
    CHECK_EQ(stats_of(&server).requests, 2 * COUNT);
    close(fd);
    unserve(&server);
}

static void requests_may_arrive_byte_by_byte(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    uint8_t bytes[28 + 300 + 28], got[300];

    header(bytes, 0, WRITE, 1, 5000, 300);
    pattern(bytes + 28, 5000, 300, 9);
    header(bytes + 328, 0, READ, 2, 5000, 300);
    for (size_t i = 0; i < 328; i++)
        send_bytes(fd, bytes + i, 1);
    expect_simple(fd, 1, 0);
    for (size_t i = 328; i < sizeof(bytes); i++)
        send_bytes(fd, bytes + i, 1);
    expect_simple(fd, 2, 0);
    recv_bytes(fd, got, sizeof(got));
    CHECK(memcmp(got, bytes + 28, 300) == 0);
    close(fd);
    unserve(&server);
}

/* Headers and payloads cut at every kind of place: small writes, large ones, reads between them. */
static void messages_may_be_cut_anywhere(void)
{
    enum {
        ROUNDS = 12,
        LARGE = 200000
    };
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    static uint8_t bytes[ROUNDS * (2 * 28 + LARGE)], got[LARGE], want[LARGE];
    size_t total = 0;

    for (unsigned i = 0; i < ROUNDS; i++) {
        uint32_t length = i % 3 ? LARGE - i : 17 + i;

        header(bytes + total, 0, WRITE, i, i * (uint64_t)LARGE, length);
        pattern(bytes + total + 28, i * (uint64_t)LARGE, length, i);
        total += 28 + length;
    }
    for (size_t at = 0, cut = 1; at < total; cut = cut * 3 % 40009 + 1) {
        size_t n = cut < total - at ? cut : total - at;

        send_bytes(fd, bytes + at, n);
        at += n;
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t cookie;

        CHECK_EQ(simple(fd, &cookie), 0);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint32_t length = i % 3 ? LARGE - i : 17 + i;

        read_ok(fd, i, i * (uint64_t)LARGE, got, length);
        pattern(want, i * (uint64_t)LARGE, length, i);
        CHECK(memcmp(got, want, length) == 0);
    }
    close(fd);
    unserve(&server);
}

static void the_largest_payload_passes(void)
{
    served server = serve(engine, 33 * TZ_MIB, false);
    int fd = attach(&server, TZ_NBD_STRUCTURED);
    size_t length = TZ_NBD_MAX_PAYLOAD;
    uint8_t *wrote = malloc(length), *got = malloc(length), place[8];

    pattern(wrote, 12345, length, 1);
    write_ok(fd, 1, 12345, wrote, (uint32_t)length);
    ask(fd, DF, READ, 2, 12345, (uint32_t)length, NULL);
    CHECK_EQ(expect_chunk(fd, 2, 1), length + 8);
    recv_bytes(fd, place, sizeof(place));
    CHECK_EQ(get(place, 8), 12345);
    recv_bytes(fd, got, length);
    CHECK(memcmp(wrote, got, length) == 0);
    free(wrote);
    free(got);
    close(fd);
    unserve(&server);
}

static void trims_zeroes_flushes_and_caching_work(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, 0);
    static uint8_t bytes[65536], zeros[65536];

    pattern(bytes, 0, sizeof(bytes), 1);
    ask(fd, FUA, WRITE, 1, 0, sizeof(bytes), bytes);
    expect_simple(fd, 1, 0);
    ask(fd, 0, FLUSH, 2, 0, 0, NULL);
    expect_simple(fd, 2, 0);
    ask(fd, FUA | NO_HOLE, ZEROES, 3, 1000, 30000, NULL);
    expect_simple(fd, 3, 0);
    read_ok(fd, 4, 0, bytes, sizeof(bytes));
    CHECK(memcmp(bytes + 1000, zeros, 30000) == 0);
    CHECK(bytes[999] == (uint8_t)(1 * 31 + 999 * 7 + 101 + 1));
    ask(fd, FUA, TRIM, 5, 4096, 32768, NULL);
    expect_simple(fd, 5, 0);
    ask(fd, FUA, CACHE, 6, 0, 65536, NULL);
    expect_simple(fd, 6, 0);
    ask(fd, 0, ZEROES, 7, 0, SIZE, NULL);
    expect_simple(fd, 7, 0);
    read_ok(fd, 8, 0, bytes, sizeof(bytes));
    CHECK(memcmp(bytes, zeros, sizeof(bytes)) == 0);
    ask(fd, FAST_ZERO, ZEROES, 9, 0, 65536, NULL);
    {
        uint64_t cookie;
        uint32_t error = simple(fd, &cookie);

        CHECK(error == 0 || error == 95 /* ENOTSUP: this file system has no fast way */);
    }
    close(fd);
    unserve(&server);
}

/* Lengths of the extents of one reply, and whether `offset + their sum` got as far as it may. */
static uint64_t expect_status(int fd, uint64_t cookie, uint32_t asked, bool one, uint32_t *first_flags)
{
    uint8_t bytes[4 + 8 * 512];
    uint32_t length = expect_chunk(fd, cookie, 5);
    uint64_t sum = 0;

    CHECK(length >= 12 && (length - 4) % 8 == 0 && length <= sizeof(bytes));
    recv_bytes(fd, bytes, length);
    CHECK_EQ(get(bytes, 4), 7);
    if (one)
        CHECK_EQ(length, 12);
    for (uint32_t at = 4; at < length; at += 8) {
        CHECK(sum < asked && get(bytes + at, 4) > 0);
        sum += get(bytes + at, 4);
    }
    CHECK(sum <= asked);
    *first_flags = (uint32_t)get(bytes + 8, 4);
    return sum;
}

static void block_status_tells_holes_from_data(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, TZ_NBD_STRUCTURED | TZ_NBD_BASE_ALLOCATION);
    static uint8_t bytes[65536];
    uint32_t flags;

    pattern(bytes, 0, sizeof(bytes), 1);
    write_ok(fd, 1, 1048576, bytes, sizeof(bytes));
    ask(fd, 0, FLUSH, 2, 0, 0, NULL);
    expect_simple(fd, 2, 0);
    ask(fd, 0, STATUS, 3, 0, SIZE, NULL);
    CHECK_EQ(expect_status(fd, 3, SIZE, false, &flags), SIZE);
    CHECK_EQ(flags, 3);
    ask(fd, REQ_ONE, STATUS, 4, 1048576, 65536, NULL);
    CHECK_EQ(expect_status(fd, 4, 65536, true, &flags), 65536);
    CHECK_EQ(flags, 0);
    ask(fd, REQ_ONE, STATUS, 5, 17, 100, NULL);
    CHECK_EQ(expect_status(fd, 5, 100, true, &flags), 100);
    close(fd);
    unserve(&server);
}

static void structured_replies_carry_data_and_errors(void)
{
    served server = serve(engine, SIZE, false);
    int fd = attach(&server, TZ_NBD_STRUCTURED);
    uint8_t wrote[777], got[777], place[8];

    pattern(wrote, 5, sizeof(wrote), 4);
    write_ok(fd, 1, 5, wrote, sizeof(wrote));
    ask(fd, 0, READ, 2, 5, sizeof(got), NULL);
    CHECK_EQ(expect_chunk(fd, 2, 1), sizeof(got) + 8);
    recv_bytes(fd, place, 8);
    CHECK_EQ(get(place, 8), 5);
    recv_bytes(fd, got, sizeof(got));
    CHECK(memcmp(got, wrote, sizeof(got)) == 0);
    ask(fd, 0, READ, 3, SIZE, 1, NULL);
    expect_error_chunk(fd, 3, 22);
    ask(fd, DF, READ, 4, 0, TZ_NBD_MAX_PAYLOAD + 1, NULL);
    expect_error_chunk(fd, 4, 75);
    ask(fd, 0, STATUS, 5, 0, 4096, NULL);
    expect_error_chunk(fd, 5, 22);
    ask(fd, 0, READ, 6, 0, 0, NULL);
    CHECK_EQ(expect_chunk(fd, 6, 0), 0);
    close(fd);
    unserve(&server);
}

static void more_requests_than_the_limits_are_served_in_turn(void)
{
    static const tz_nbd_config limits[] = {
        {.max_requests = 1}, {.max_requests = 3}, {.max_bytes = 1}, {.max_requests = 8, .max_bytes = 20000}};
    enum {
        COUNT = 50,
        BYTES = 8192
    };
    static uint8_t batch[COUNT * (28 + BYTES)], got[BYTES], want[BYTES];

    for (unsigned l = 0; l < sizeof(limits) / sizeof(*limits); l++) {
        served server = serve(engine, SIZE, false);
        int fd = attach_as(&server, limits[l]);

        for (int i = 0; i < COUNT; i++) {
            header(batch + i * (28 + BYTES), 0, WRITE, (uint64_t)i, (uint64_t)i * BYTES, BYTES);
            pattern(batch + i * (28 + BYTES) + 28, (uint64_t)i * BYTES, BYTES, l);
        }
        send_bytes(fd, batch, sizeof(batch));
        for (int i = 0; i < COUNT; i++) {
            uint64_t cookie;

            CHECK_EQ(simple(fd, &cookie), 0);
        }
        for (int i = 0; i < COUNT; i++) {
            read_ok(fd, 1, (uint64_t)i * BYTES, got, BYTES);
            pattern(want, (uint64_t)i * BYTES, BYTES, l);
            CHECK(memcmp(got, want, BYTES) == 0);
        }
        close(fd);
        unserve(&server);
    }
}

static void connections_share_one_volume(void)
{
    enum {
        COUNT = 4
    };
    served server = serve(engine, SIZE, false);
    uint8_t wrote[5000], got[5000];
    int fds[COUNT];

    for (int i = 0; i < COUNT; i++)
        fds[i] = attach(&server, 0);
    CHECK_EQ(stats_of(&server).connections, COUNT);
    for (int i = 0; i < 40; i++) {
        pattern(wrote, 3000, sizeof(wrote), (unsigned)i);
        write_ok(fds[i % COUNT], 1, 3000, wrote, sizeof(wrote));
        read_ok(fds[(i + 1) % COUNT], 2, 3000, got, sizeof(got));
        CHECK(memcmp(wrote, got, sizeof(got)) == 0);
    }
    close(fds[0]);
    wait_connections(&server, COUNT - 1);
    for (int i = 1; i < COUNT; i++)
        close(fds[i]);
    unserve(&server);
}

static void announced_flags_are_those_of_the_protocol(void)
{
    served server = serve(engine, SIZE, false);

    /* HAS_FLAGS FLUSH FUA TRIM ZEROES DF MULTI_CONN CACHE FAST_ZERO; and without the updates, READ_ONLY. */
    CHECK_EQ(tz_nbd_transmission_flags(server.volume, false), 0x0ded);
    CHECK_EQ(tz_nbd_transmission_flags(server.volume, true), 0x058f);
    unserve(&server);
    server = serve(engine, SIZE, true);
    CHECK_EQ(tz_nbd_transmission_flags(server.volume, false), 0x058f);
    unserve(&server);
}

static void run_all(void)
{
    RUN(data_comes_back);
    RUN(pipelined_requests_are_all_answered);
    RUN(requests_may_arrive_byte_by_byte);
    RUN(messages_may_be_cut_anywhere);
    RUN(the_largest_payload_passes);
    RUN(trims_zeroes_flushes_and_caching_work);
    RUN(block_status_tells_holes_from_data);
    RUN(structured_replies_carry_data_and_errors);
    RUN(more_requests_than_the_limits_are_served_in_turn);
    RUN(connections_share_one_volume);
    RUN(announced_flags_are_those_of_the_protocol);
}

int main(void)
{
    alarm(240);
    for (engine = TZ_IO_URING; engine <= TZ_IO_THREADS; engine++) {
        if (!engine_here(engine))
            continue;
        for (int i = 0; i < 2; i++) {
            serve_from_memory = i == 1;
            printf("volumes %s\n", serve_from_memory ? "in memory" : "in a file");
            run_all();
        }
    }
    return 0;
}
