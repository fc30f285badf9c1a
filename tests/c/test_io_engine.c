/* SPDX-License-Identifier: Apache-2.0
 *
 * The engines: file ops, polls, timers, cancel. Every test runs with both.
 */
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "test_io_common.h"

static void test_read_write(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    int fd = make_file(10000, O_RDWR);
    uint8_t data[4096], back[4096];
    probe p = {0};

    tz_io_read(io, &p.op, fd, data, sizeof(data), 100, probe_done);
    CHECK_EQ(tz_io_inflight(io), 1);
    settle(io);
    CHECK_EQ(p.result, 4096);
    for (int i = 0; i < 4096; i++)
        CHECK_EQ(data[i], pattern(100 + i));
    tz_io_read(io, &p.op, fd, data, sizeof(data), 9000, probe_done);
    settle(io);
    CHECK_EQ(p.result, 1000);
    tz_io_read(io, &p.op, fd, data, sizeof(data), 20000, probe_done);
    settle(io);
    CHECK_EQ(p.result, 0);
    memset(data, 0x5a, sizeof(data));
    tz_io_write(io, &p.op, fd, data, sizeof(data), 8192, probe_done);
    settle(io);
    CHECK_EQ(p.result, 4096);
    CHECK_EQ(pread(fd, back, 4096, 8192), 4096);
    CHECK_EQ(memcmp(data, back, 4096), 0);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_DATASYNC, .fd = fd}), 0);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_READ, .fd = fd}), 0); /* nothing asked */
    CHECK_EQ(p.calls, 4);
    close(fd);
    tz_io_destroy(io);
}

/* Done before the call returns, told in tz_io_run as ever: end of file and errors too. */
static void test_here(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    int fd = make_file(10000, O_RDWR);
    uint8_t data[4096], back[4096];
    probe p = {0};

    tz_io_read_here(io, &p.op, fd, data, sizeof(data), 9000, probe_done);
    CHECK_EQ(tz_io_inflight(io), 1);
    CHECK_EQ(p.calls, 0);
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(data[i], pattern(9000 + i));
    settle(io);
    CHECK_EQ(p.result, 1000);
    memset(data, 0x5a, sizeof(data));
    tz_io_write_here(io, &p.op, fd, data, sizeof(data), 8192, probe_done);
    CHECK_EQ(pread(fd, back, 4096, 8192), 4096);
    CHECK_EQ(memcmp(data, back, 4096), 0);
    tz_io_cancel(io, &p.op); /* too late */
    settle(io);
    CHECK_EQ(p.result, 4096);
    CHECK_EQ(p.calls, 2);
    tz_io_write_here(io, &p.op, -1, data, sizeof(data), 0, probe_done);
    settle(io);
    CHECK_EQ(p.result, -EBADF);
    close(fd);
    tz_io_destroy(io);
}

static void test_vectors(tz_io_kind kind)
{
    enum {
        PARTS = 100
    };
    tz_io *io = make_io(kind, 0, 0);
    int fd = make_file(0, O_RDWR);
    uint8_t in[PARTS * 7], out[PARTS * 7 + 50];
    struct iovec iov[PARTS];

    for (int i = 0; i < PARTS; i++) {
        memset(in + i * 7, i, 7);
        iov[i] = (struct iovec){in + i * 7, 7};
    }
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_WRITE, .fd = fd, .iov = iov, .iovs = PARTS, .offset = 3}),
             PARTS * 7);
    iov[0] = (struct iovec){out, 10};
    iov[1] = (struct iovec){out + 10, 0};
    iov[2] = (struct iovec){out + 10, sizeof(out) - 10};
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_READ, .fd = fd, .iov = iov, .iovs = 3, .offset = 3}), PARTS * 7);
    CHECK_EQ(memcmp(in, out, sizeof(in)), 0);
    close(fd);
    tz_io_destroy(io);
}

/* A pipe delivers in pieces: the engine must go on, over iov borders, until the end. */
static void test_short_transfers(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    char a[5] = "", b[11] = "";
    struct iovec iov[2] = {{a, 5}, {b, 10}};
    probe p = {.op = {.opcode = TZ_IO_READ, .iov = iov, .iovs = 2, .offset = TZ_IO_AT_POSITION, .done = probe_done}};
    int ends[2];

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    p.op.fd = ends[0];
    tz_io_submit(io, &p.op);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(p.calls, 0);
        CHECK_EQ(write(ends[1], "abc", 3), 3);
        run_for(io, 5 * MS);
    }
    settle(io);
    CHECK_EQ(p.result, 15);
    CHECK_EQ(memcmp(a, "abcab", 5), 0);
    CHECK_EQ(strcmp(b, "cabcabcabc"), 0);
    close(ends[0]);
    close(ends[1]);
    tz_io_destroy(io);
}

/* A non-blocking fd says EAGAIN: the engine waits for it. */
static void test_nonblocking_pipe(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    size_t size = 1 << 20, got = 0;
    uint8_t *data = aligned(size), chunk[4096];
    probe p = {0};
    int ends[2];

    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    tz_io_write(io, &p.op, ends[1], data, size, TZ_IO_AT_POSITION, probe_done);
    while (tz_io_inflight(io) || got < size) {
        ssize_t n = read(ends[0], chunk, sizeof(chunk));

        got += n > 0 ? (size_t)n : 0;
        CHECK(tz_io_run(io, n > 0 || !tz_io_inflight(io) ? 0 : 10 * MS) >= 0);
    }
    CHECK_EQ(p.result, (int64_t)size);
    CHECK_EQ(got, size);
    free(data);
    close(ends[0]);
    close(ends[1]);
    tz_io_destroy(io);
}

static void test_direct(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    int fd = make_file(3 * 4096 + 700, O_RDWR | O_DIRECT);
    uint8_t *data = aligned(65536);
    probe p = {0};

    tz_io_read(io, &p.op, fd, data, 65536, 0, probe_done); /* ends inside a block: the end of the file */
    settle(io);
    CHECK_EQ(p.result, 3 * 4096 + 700);
    for (int i = 0; i < p.result; i++)
        CHECK_EQ(data[i], pattern(i));
    tz_io_read(io, &p.op, fd, data, 8192, 4096, probe_done);
    settle(io);
    CHECK_EQ(p.result, 8192);
    CHECK_EQ(data[0], pattern(4096));
    tz_io_write(io, &p.op, fd, data, 65536, 4096, probe_done);
    settle(io);
    CHECK_EQ(p.result, 65536);
    free(data);
    close(fd);
    tz_io_destroy(io);
}

static void test_errors(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    int full = open("/dev/full", O_RDWR | O_CLOEXEC), fd = make_file(100, O_RDWR), ro = make_file(100, O_RDONLY);
    struct rlimit before, small = {8192, RLIM_INFINITY};
    char data[4096] = "";
    struct iovec iov = {data, sizeof(data)};
    tz_io_op write_op = {.opcode = TZ_IO_WRITE, .fd = full, .iov = &iov, .iovs = 1};

    CHECK_EQ(finish(io, write_op), -ENOSPC);
    write_op.fd = -1;
    CHECK_EQ(finish(io, write_op), -EBADF);
    write_op.fd = ro;
    CHECK_EQ(finish(io, write_op), -EBADF);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_READ, .fd = fd, .iov = &iov, .iovs = TZ_IO_IOV_MAX + 1}), -EINVAL);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = (tz_io_opcode)99}), -EINVAL);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_BLKZERO, .fd = fd, .length = 512}), -ENOTTY);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_FALLOCATE, .fd = fd, .length = 0}), -EINVAL);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_POLL, .fd = 9999, .arg = 1}), -EBADF);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_RECV, .fd = fd, .iov = &iov, .iovs = 1}), -ENOTSOCK);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_SEND, .fd = fd, .iov = &iov, .iovs = 1}), -ENOTSOCK);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_SEND, .fd = -1, .iov = &iov, .iovs = 1}), -EBADF);
    /* A write that begins below the limit and ends above it is short first, and then an error: never a short success.
     */
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_WRITE, .fd = fd, .iov = &iov, .iovs = 1, .offset = 6000}), -EFBIG);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    close(full);
    close(fd);
    close(ro);
    tz_io_destroy(io);
}

static void test_fallocate(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    int fd = make_file(65536, O_RDWR);
    char byte = 1;

    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_FALLOCATE,
                                   .fd = fd,
                                   .offset = 8192,
                                   .length = 4096,
                                   .arg = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE}),
             0);
    CHECK_EQ(pread(fd, &byte, 1, 8192 + 100), 1);
    CHECK_EQ(byte, 0);
    CHECK_EQ(pread(fd, &byte, 1, 8191), 1);
    CHECK_EQ((uint8_t)byte, pattern(8191));
    close(fd);
    tz_io_destroy(io);
}

/* Many more ops than the ring has entries, all at once, file ops and timers mixed. */
static void test_beyond_depth(tz_io_kind kind)
{
    enum {
        OPS = 3000
    };
    tz_io *io = make_io(kind, 4, 3);
    int fd = make_file(OPS, O_RDONLY);
    probe *p = calloc(OPS, sizeof(*p)), *t = calloc(OPS, sizeof(*t));
    uint8_t *data = malloc(OPS);

    for (int i = 0; i < OPS; i++) {
        tz_io_read(io, &p[i].op, fd, data + i, 1, (uint64_t)i, probe_done);
        t[i].op = (tz_io_op){.opcode = TZ_IO_TIMEOUT, .length = (uint64_t)(i % 50) * 1000, .done = probe_done};
        tz_io_submit(io, &t[i].op);
    }
    CHECK_EQ(tz_io_inflight(io), 2 * OPS);
    settle(io);
    for (int i = 0; i < OPS; i++) {
        CHECK_EQ(p[i].calls, 1);
        CHECK_EQ(p[i].result, 1);
        CHECK_EQ(data[i], pattern(i));
        CHECK_EQ(t[i].calls, 1);
        CHECK_EQ(t[i].result, 0);
    }
    free(data);
    free(p);
    free(t);
    close(fd);
    tz_io_destroy(io);
}

/* An op that submits itself again and another one, and frees itself at the end. */
typedef struct chain {
    probe p;
    tz_io *io;
    int fd, left;
    int *ended;
    char byte;
} chain;

static void chain_done(tz_io_op *op, int64_t result)
{
    chain *c = (chain *)op;

    CHECK_EQ(result, 1);
    CHECK_EQ((uint8_t)c->byte, pattern((uint64_t)c->left));
    if (c->left-- > 0) {
        tz_io_read(c->io, op, c->fd, &c->byte, 1, (uint64_t)c->left, chain_done);
        return;
    }
    ++*c->ended;
    memset(c, 0xaa, sizeof(*c));
    free(c);
}

static void test_resubmit_and_free(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 4, 2);
    int fd = make_file(2000, O_RDONLY), ended = 0;

    for (int i = 0; i < 20; i++) {
        chain *c = calloc(1, sizeof(*c));

        c->io = io;
        c->fd = fd;
        c->left = 200 + i;
        c->ended = &ended;
        tz_io_read(io, &c->p.op, fd, &c->byte, 1, (uint64_t)c->left, chain_done);
    }
    while (ended < 20)
        CHECK(tz_io_run(io, 10 * S) >= 0);
    CHECK_EQ(tz_io_inflight(io), 0);
    close(fd);
    tz_io_destroy(io);
}

static void test_timers(tz_io_kind kind)
{
    static const uint64_t lengths[] = {3 * MS, 100000, 1 * MS, 0, 100000, 2 * MS};
    tz_io *io = make_io(kind, 0, 0);
    probe p[6] = {0};
    int64_t began = now_ns();

    for (int i = 0; i < 6; i++) {
        p[i].op = (tz_io_op){.opcode = TZ_IO_TIMEOUT, .length = lengths[i], .done = probe_done};
        tz_io_submit(io, &p[i].op);
    }
    while (tz_io_inflight(io)) {
        CHECK(tz_io_run(io, -1) >= 0);
        for (int i = 0; i < 6; i++)
            if (p[i].calls)
                CHECK(now_ns() - began >= (int64_t)lengths[i]);
    }
    for (int i = 0; i < 6; i++)
        CHECK_EQ(p[i].result, 0);
    CHECK(now_ns() - began >= 3 * MS);
    CHECK_EQ(tz_io_run(io, 0), 0);
    began = now_ns();
    CHECK_EQ(tz_io_run(io, 2 * MS), 0);
    CHECK(now_ns() - began >= 2 * MS - 100000);
    tz_io_destroy(io);
}

static void test_poll(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    int event = eventfd(0, EFD_CLOEXEC), file = make_file(10, O_RDONLY);
    uint64_t one = 1;
    probe a = {.op = {.opcode = TZ_IO_POLL, .fd = event, .arg = 1 /* POLLIN */, .done = probe_done}}, b = a;

    tz_io_submit(io, &a.op);
    tz_io_submit(io, &b.op); /* two ops for one fd */
    run_for(io, 5 * MS);
    CHECK_EQ(a.calls + b.calls, 0);
    CHECK_EQ(write(event, &one, 8), 8);
    settle(io);
    CHECK_EQ(a.result, 1);
    CHECK_EQ(b.result, 1);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_POLL, .fd = event, .arg = 1 | 4}), 1 | 4);
    CHECK_EQ(finish(io, (tz_io_op){.opcode = TZ_IO_POLL, .fd = file, .arg = 1}), 1);
    close(event);
    close(file);
    tz_io_destroy(io);
}

static void test_cancel(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 1);
    int event = eventfd(0, EFD_CLOEXEC), ends[2];
    char byte;
    probe timer = {.op = {.opcode = TZ_IO_TIMEOUT, .length = 100 * S, .done = probe_done}};
    probe poll = {.op = {.opcode = TZ_IO_POLL, .fd = event, .arg = 1, .done = probe_done}};
    probe queued = timer, blocked = {0}, behind = {0};

    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    /* Before it started. */
    tz_io_submit(io, &queued.op);
    tz_io_cancel(io, &queued.op);
    CHECK_EQ(queued.calls, 0);
    CHECK_EQ(tz_io_run(io, S), 1);
    CHECK_EQ(queued.result, -ECANCELED);
    /* Twice, in flight. */
    tz_io_submit(io, &timer.op);
    tz_io_submit(io, &poll.op);
    CHECK_EQ(tz_io_run(io, 0), 0);
    tz_io_cancel(io, &timer.op);
    tz_io_cancel(io, &timer.op);
    tz_io_cancel(io, &poll.op);
    settle(io);
    CHECK_EQ(timer.calls, 1);
    CHECK_EQ(timer.result, -ECANCELED);
    CHECK_EQ(poll.calls, 1);
    CHECK_EQ(poll.result, -ECANCELED);
    /* A read that blocks a worker, and one that waits behind it. */
    tz_io_read(io, &blocked.op, ends[0], &byte, 1, TZ_IO_AT_POSITION, probe_done);
    run_for(io, 10 * MS);
    tz_io_read(io, &behind.op, ends[0], &byte, 1, TZ_IO_AT_POSITION, probe_done);
    run_for(io, 10 * MS);
    tz_io_cancel(io, &behind.op);
    run_for(io, 10 * MS);
    CHECK_EQ(behind.calls, 1);
    CHECK_EQ(behind.result, -ECANCELED);
    tz_io_cancel(io, &blocked.op); /* a worker cannot be called back: the result decides */
    CHECK_EQ(write(ends[1], "x", 1), 1);
    settle(io);
    CHECK(blocked.calls == 1 && (blocked.result == -ECANCELED || blocked.result == 1));
    close(event);
    close(ends[0]);
    close(ends[1]);
    tz_io_destroy(io);
}

/* Cancels that race with the end: each op calls back once, with either. */
static void test_cancel_races(tz_io_kind kind)
{
    enum {
        OPS = 64
    };
    tz_io *io = make_io(kind, 8, 2);
    int fd = make_file(OPS, O_RDONLY);
    probe p[OPS];
    char byte[OPS];

    for (int round = 0; round < 50; round++) {
        memset(p, 0, sizeof(p));
        for (int i = 0; i < OPS; i++) {
            tz_io_read(io, &p[i].op, fd, &byte[i], 1, (uint64_t)i, probe_done);
            if (i % 8 == round % 8)
                CHECK(tz_io_run(io, 0) >= 0);
            if (!p[i / 2].calls)
                tz_io_cancel(io, &p[i / 2].op);
        }
        settle(io);
        for (int i = 0; i < OPS; i++) {
            CHECK_EQ(p[i].calls, 1);
            CHECK(p[i].result == 1 || p[i].result == -ECANCELED);
        }
    }
    close(fd);
    tz_io_destroy(io);
}

static void test_busy_poll(tz_io_kind kind)
{
    int fd = make_file(4096, O_RDONLY);
    struct timespec before, after;
    char data[4096];
    probe p = {0};
    tz_io *io;

    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = kind, .poll_us = 900}), 0);
    for (int i = 0; i < 200; i++) {
        tz_io_read(io, &p.op, fd, data, sizeof(data), 0, probe_done);
        settle(io);
        CHECK_EQ(p.result, 4096);
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(tz_io_run(io, 1 * MS), 0);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    /* 100 waits that look for work all the time would burn 90 ms of CPU; one that finds none does not look. */
    CHECK((after.tv_sec - before.tv_sec) * S + after.tv_nsec - before.tv_nsec < 45 * MS);
    close(fd);
    tz_io_destroy(io);
}

static void test_create(void)
{
    const char *step = NULL;
    int rc = tz_io_probe_uring(&step);
    tz_io *io;

    CHECK((rc == 0) == (step == NULL));
    printf("io_uring: %s\n", rc == 0 ? "works" : step);
    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = TZ_IO_AUTO}), 0);
    CHECK_EQ(tz_io_engine(io), rc == 0 ? TZ_IO_URING : TZ_IO_THREADS);
    tz_io_destroy(io);
    if (rc < 0)
        CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = TZ_IO_URING}), rc);
    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.kind = (tz_io_kind)7}), -EINVAL);
    CHECK_EQ(tz_io_create(&io, &(tz_io_config){.depth = 1u << 20}), -EINVAL);
    tz_io_destroy(NULL);
}

int main(void)
{
    RUN(test_create);
    RUN_BOTH(test_read_write);
    RUN_BOTH(test_here);
    RUN_BOTH(test_vectors);
    RUN_BOTH(test_short_transfers);
    RUN_BOTH(test_nonblocking_pipe);
    RUN_BOTH(test_direct);
    RUN_BOTH(test_errors);
    RUN_BOTH(test_fallocate);
    RUN_BOTH(test_beyond_depth);
    RUN_BOTH(test_resubmit_and_free);
    RUN_BOTH(test_timers);
    RUN_BOTH(test_poll);
    RUN_BOTH(test_cancel);
    RUN_BOTH(test_cancel_races);
    RUN_BOTH(test_busy_poll);
    return 0;
}
