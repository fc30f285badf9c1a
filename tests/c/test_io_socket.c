/* SPDX-License-Identifier: Apache-2.0
 *
 * Sockets under both engines: short and whole transfers, back pressure, closing peers, cancel, many waiting at once.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>

#include "test_io_common.h"

typedef struct pair {
    int a, b;
} pair;

static pair make_pair(int flags)
{
    int ends[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, ends), 0);
    return (pair){ends[0], ends[1]};
}

static void drop(pair p)
{
    close(p.a);
    close(p.b);
}

static void submit_recv(tz_io *io, probe *p, int fd, void *buffer, size_t length, uint32_t flags)
{
    *p = (probe){.op = {.opcode = TZ_IO_RECV, .fd = fd, .iovs = 1, .arg = flags, .done = probe_done}};
    p->op.engine.one = (struct iovec){buffer, length};
    p->op.iov = &p->op.engine.one;
    tz_io_submit(io, &p->op);
}

static void submit_send(tz_io *io, probe *p, int fd, struct iovec *iov, uint32_t iovs)
{
    *p = (probe){.op = {.opcode = TZ_IO_SEND, .fd = fd, .iov = iov, .iovs = iovs, .done = probe_done}};
    tz_io_submit(io, &p->op);
}

static void test_recv(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    pair s = make_pair(0);
    char data[100];
    probe p;

    submit_recv(io, &p, s.a, data, sizeof(data), 0);
    run_for(io, 5 * MS);
    CHECK_EQ(p.calls, 0);
    CHECK_EQ(write(s.b, "hello", 5), 5);
    settle(io);
    CHECK_EQ(p.result, 5);
    CHECK_EQ(memcmp(data, "hello", 5), 0);
    submit_recv(io, &p, s.a, data, sizeof(data), MSG_DONTWAIT);
    settle(io);
    CHECK_EQ(p.result, -EAGAIN);
    CHECK_EQ(write(s.b, "there", 5), 5);
    submit_recv(io, &p, s.a, data, 2, MSG_PEEK);
    settle(io);
    CHECK_EQ(p.result, 2);
    submit_recv(io, &p, s.a, data, 2, 0);
    settle(io);
    CHECK_EQ(memcmp(data, "th", 2), 0);
    close(s.b);
    submit_recv(io, &p, s.a, data, sizeof(data), 0);
    settle(io);
    CHECK_EQ(p.result, 3);
    submit_recv(io, &p, s.a, data, sizeof(data), 0);
    settle(io);
    CHECK_EQ(p.result, 0); /* the peer closed */
    close(s.a);
    tz_io_destroy(io);
}

static void test_recv_all(tz_io_kind kind)
{
    for (int flags = 0; flags <= SOCK_NONBLOCK; flags += SOCK_NONBLOCK) {
        tz_io *io = make_io(kind, 0, 0);
        pair s = make_pair(flags);
        char data[12];
        probe p;

        submit_recv(io, &p, s.a, data, 12, MSG_WAITALL);
        for (int i = 0; i < 4; i++) {
            run_for(io, 3 * MS);
            CHECK_EQ(p.calls, 0);
            CHECK_EQ(write(s.b, "abc", 3), 3);
        }
        settle(io);
        CHECK_EQ(p.result, 12);
        CHECK_EQ(memcmp(data, "abcabcabcabc", 12), 0);
        submit_recv(io, &p, s.a, data, 12, MSG_WAITALL);
        CHECK_EQ(write(s.b, "xyz", 3), 3);
        run_for(io, 3 * MS);
        CHECK_EQ(p.calls, 0);
        close(s.b);
        settle(io);
        CHECK_EQ(p.result, 3); /* the end of the stream cuts it short */
        close(s.a);
        tz_io_destroy(io);
    }
}

/* A send much larger than the socket's buffer, from several vectors, to a peer that reads in small steps. */
static void send_through(tz_io_kind kind, pair s)
{
    enum {
        SIZE = 300000
    };
    tz_io *io = make_io(kind, 0, 0);
    uint8_t *out = malloc(SIZE), *in = malloc(SIZE);
    struct iovec iov[4] = {{out, 1000}, {out + 1000, 0}, {out + 1000, 199000}, {out + 200000, SIZE - 200000}};
    size_t got = 0;
    int small = 4096;
    probe p;

    CHECK_EQ(setsockopt(s.a, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    for (int i = 0; i < SIZE; i++)
        out[i] = pattern((uint64_t)i);
    submit_send(io, &p, s.a, iov, 4);
    while (got < SIZE) {
        ssize_t n;

        CHECK(tz_io_run(io, 0) >= 0);
        CHECK(p.calls == 0 || p.result == SIZE);
        n = recv(s.b, in + got, tz_min_u64(SIZE - got, 3333), MSG_DONTWAIT);
        CHECK(n > 0 || (n < 0 && errno == EAGAIN));
        got += n > 0 ? (size_t)n : 0;
    }
    settle(io);
    CHECK_EQ(p.calls, 1);
    CHECK_EQ(p.result, SIZE);
    CHECK_EQ(memcmp(in, out, SIZE), 0);
    iov[0] = (struct iovec){out, 10};
    submit_send(io, &p, s.a, iov, 1);
    settle(io);
    CHECK_EQ(p.result, 10);
    CHECK_EQ(recv(s.b, in, 100, 0), 10);
    submit_send(io, &p, s.a, iov, 0);
    settle(io);
    CHECK_EQ(p.result, 0);
    free(out);
    free(in);
    drop(s);
    tz_io_destroy(io);
}

static pair make_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pair s;

    CHECK_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    s.a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(s.a, (struct sockaddr *)&address, length), 0);
    s.b = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(s.b >= 0);
    close(listener);
    return s;
}

static void test_send_is_whole(tz_io_kind kind)
{
    send_through(kind, make_pair(0));
    send_through(kind, make_pair(SOCK_NONBLOCK));
    send_through(kind, make_tcp());
}

static void test_both_ways(tz_io_kind kind)
{
    enum {
        SIZE = 200000
    };
    tz_io *io = make_io(kind, 4, 0);
    pair s = make_pair(0);
    uint8_t *out = malloc(2 * SIZE), *in = malloc(2 * SIZE);
    struct iovec iov[2] = {{out, SIZE}, {out + SIZE, SIZE}};
    probe send_a, send_b, recv_a, recv_b;

    for (int i = 0; i < 2 * SIZE; i++)
        out[i] = pattern((uint64_t)i);
    submit_send(io, &send_a, s.a, &iov[0], 1);
    submit_send(io, &send_b, s.b, &iov[1], 1);
    submit_recv(io, &recv_a, s.a, in, SIZE, MSG_WAITALL);
    submit_recv(io, &recv_b, s.b, in + SIZE, SIZE, MSG_WAITALL);
    settle(io);
    CHECK_EQ(send_a.result, SIZE);
    CHECK_EQ(send_b.result, SIZE);
    CHECK_EQ(recv_a.result, SIZE);
    CHECK_EQ(recv_b.result, SIZE);
    CHECK_EQ(memcmp(in, out + SIZE, SIZE), 0);
    CHECK_EQ(memcmp(in + SIZE, out, SIZE), 0);
    free(in);
    free(out);
    drop(s);
    tz_io_destroy(io);
}

static void test_peer_gone(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    pair s = make_pair(0);
    size_t size = 1 << 20;
    char *data = calloc(1, size);
    struct iovec iov = {data, size};
    probe p, r;

    /* In the middle of a send. SIGPIPE would end this process. */
    submit_send(io, &p, s.a, &iov, 1);
    run_for(io, 5 * MS);
    CHECK_EQ(p.calls, 0);
    close(s.b);
    settle(io);
    CHECK(p.result == -EPIPE || p.result == -ECONNRESET);
    iov = (struct iovec){data, 10};
    submit_send(io, &p, s.a, &iov, 1);
    settle(io);
    CHECK_EQ(p.result, -EPIPE);
    close(s.a);
    /* Our own shutdown ends a waiting receive. */
    s = make_pair(0);
    submit_recv(io, &r, s.a, data, 100, 0);
    run_for(io, 5 * MS);
    CHECK_EQ(shutdown(s.a, SHUT_RDWR), 0);
    settle(io);
    CHECK_EQ(r.result, 0);
    drop(s);
    free(data);
    tz_io_destroy(io);
}

static void test_cancel(tz_io_kind kind)
{
    tz_io *io = make_io(kind, 0, 0);
    pair s = make_pair(0);
    size_t size = 4 << 20;
    char *data = calloc(1, size);
    struct iovec iov = {data, size};
    probe r, w;

    submit_recv(io, &r, s.a, data, 100, 0);
    run_for(io, 5 * MS);
    tz_io_cancel(io, &r.op);
    CHECK_EQ(r.calls, 0);
    settle(io);
    CHECK_EQ(r.result, -ECANCELED);
    /* Bytes that were taken off the socket are not lost by a cancel. */
    CHECK_EQ(write(s.b, "abc", 3), 3);
    submit_recv(io, &r, s.a, data, 100, MSG_WAITALL);
    run_for(io, 5 * MS);
    tz_io_cancel(io, &r.op);
    settle(io);
    CHECK_EQ(r.result, 3);
    submit_send(io, &w, s.a, &iov, 1);
    run_for(io, 5 * MS);
    CHECK_EQ(w.calls, 0);
    tz_io_cancel(io, &w.op);
    settle(io);
    CHECK_EQ(w.calls, 1);
    CHECK_EQ(w.result, -ECANCELED);
    free(data);
    drop(s);
    /* A socket of the same number as one that an op waited for. */
    pair t = make_pair(0);
    CHECK_EQ(t.a, s.a);
    char byte[1];
    submit_recv(io, &r, t.a, byte, 1, 0);
    run_for(io, 2 * MS);
    CHECK_EQ(write(t.b, "q", 1), 1);
    settle(io);
    CHECK_EQ(r.result, 1);
    drop(t);
    tz_io_destroy(io);
}

/* Sockets that wait for ever must not keep others out, however small the ring. */
static void test_many_idle(tz_io_kind kind)
{
    enum {
        PAIRS = 200
    };
    tz_io *io = make_io(kind, 4, 2);
    static pair s[PAIRS];
    static probe r[PAIRS];
    static char byte[PAIRS];
    int fd = make_file(4096, O_RDONLY);
    char data[4096];
    probe p = {0};

    for (int i = 0; i < PAIRS; i++) {
        s[i] = make_pair(i % 2 ? SOCK_NONBLOCK : 0);
        submit_recv(io, &r[i], s[i].a, &byte[i], 1, 0);
    }
    for (int i = 0; i < 20; i++) {
        p.calls = 0;
        tz_io_read(io, &p.op, fd, data, sizeof(data), 0, probe_done);
        for (int turns = 0; !p.calls && turns < 1000; turns++)
            CHECK(tz_io_run(io, S) >= 0);
        CHECK_EQ(p.calls, 1);
        CHECK_EQ(p.result, 4096);
    }
    for (int i = PAIRS - 1; i >= 0; i -= 2)
        CHECK_EQ(write(s[i].b, "z", 1), 1);
    for (int i = 0; i < PAIRS; i += 2)
        tz_io_cancel(io, &r[i].op);
    settle(io);
    for (int i = 0; i < PAIRS; i++) {
        CHECK_EQ(r[i].calls, 1);
        CHECK_EQ(r[i].result, i % 2 ? 1 : -ECANCELED);
        drop(s[i]);
    }
    close(fd);
    tz_io_destroy(io);
}

/* An echo over callbacks alone, thousands of rounds: nothing nests, nothing is lost. */
typedef struct echo {
    probe recv, send;
    tz_io *io;
    struct iovec iov;
    char data[64];
    int fd, rounds;
} echo;

static void echo_received(tz_io_op *op, int64_t result);

static void echo_sent(tz_io_op *op, int64_t result)
{
    echo *e = op->user;

    CHECK_EQ(result, (int64_t)sizeof(e->data));
    if (--e->rounds > 0) {
        submit_recv(e->io, &e->recv, e->fd, e->data, sizeof(e->data), MSG_WAITALL);
        e->recv.op.done = echo_received;
        e->recv.op.user = e;
    }
}

static void echo_received(tz_io_op *op, int64_t result)
{
    echo *e = op->user;

    CHECK_EQ(result, (int64_t)sizeof(e->data));
    e->iov = (struct iovec){e->data, sizeof(e->data)};
    submit_send(e->io, &e->send, e->fd, &e->iov, 1);
    e->send.op.done = echo_sent;
    e->send.op.user = e;
}

static void test_echo(tz_io_kind kind)
{
    enum {
        ROUNDS = 3000
    };
    tz_io *io = make_io(kind, 4, 0);
    pair s = make_pair(0);
    echo a = {.io = io, .fd = s.a, .rounds = ROUNDS}, b = {.io = io, .fd = s.b, .rounds = ROUNDS};

    submit_recv(io, &a.recv, s.a, a.data, sizeof(a.data), MSG_WAITALL);
    a.recv.op.done = echo_received;
    a.recv.op.user = &a;
    b.recv.op.user = &b;
    b.recv.op.done = echo_received;
    echo_received(&b.recv.op, sizeof(b.data)); /* b serves */
    settle(io);
    CHECK_EQ(a.rounds, 0);
    CHECK_EQ(b.rounds, 0);
    drop(s);
    tz_io_destroy(io);
}

int main(void)
{
    RUN_BOTH(test_recv);
    RUN_BOTH(test_recv_all);
    RUN_BOTH(test_send_is_whole);
    RUN_BOTH(test_both_ways);
    RUN_BOTH(test_peer_gone);
    RUN_BOTH(test_cancel);
    RUN_BOTH(test_many_idle);
    RUN_BOTH(test_echo);
    return 0;
}
