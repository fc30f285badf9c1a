/* SPDX-License-Identifier: Apache-2.0
 *
 * A served volume for tests, and the client's side of the NBD transmission phase, written from the protocol
 * text alone: nothing of csrc/subsystem's encoders is used here. Every wait ends after TIMEOUT_S seconds.
 */
#ifndef TZ_TESTS_NBD_CLIENT_H
#define TZ_TESTS_NBD_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "tz/nbd.h"

#define TIMEOUT_S 30

enum {
    READ,
    WRITE,
    DISC,
    FLUSH,
    TRIM,
    CACHE,
    ZEROES,
    STATUS
};
enum {
    FUA = 1,
    NO_HOLE = 2,
    DF = 4,
    REQ_ONE = 8,
    FAST_ZERO = 16
};

/* Is this engine to be had in this build, on this kernel? Says so when it is not. */
static inline bool engine_here(tz_io_kind kind)
{
    bool here = kind == TZ_IO_THREADS || tz_io_probe_uring(NULL) == 0;

    printf(here ? "engine %s\n" : "no engine %s here\n", kind == TZ_IO_URING ? "uring" : "threads");
    return here;
}

/* ---- the server's side ---- */

typedef struct served {
    tz_reactor *reactor;
    tz_volume *volume;
    uint64_t size;
} served;

/* Where volumes lie: in the current directory, or on tmpfs, where transfers are done on the spot. */
static bool serve_from_memory;

static inline served serve(tz_io_kind kind, uint64_t size, bool read_only)
{
    char disk[] = "tz-nbd-XXXXXX", memory[] = "/dev/shm/tz-nbd-XXXXXX", *path = serve_from_memory ? memory : disk;
    tz_io_config io = {.kind = kind};
    tz_volume_config config = {.path = path, .read_only = read_only};
    served server = {.size = size};
    int fd = mkostemp(path, O_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)size), 0);
    close(fd);
    CHECK_EQ(tz_reactor_create(&server.reactor, &io), 0);
    CHECK_EQ(tz_volume_open(&server.volume, tz_reactor_io(server.reactor), &config), 0);
    CHECK_EQ(unlink(path), 0);
    return server;
}

static inline int close_volume(void *arg)
{
    CHECK(tz_volume_is_idle(arg));
    tz_volume_close(arg);
    return 0;
}

static inline void unserve(served *server)
{
    CHECK_EQ(tz_nbd_close_all(server->reactor, server->volume, UINT64_C(1000000000) * TIMEOUT_S), 0);
    CHECK_EQ(tz_reactor_call(server->reactor, close_volume, server->volume), 0);
    tz_reactor_destroy(server->reactor);
}

static inline tz_nbd_stats stats_of(served *server)
{
    tz_nbd_stats stats;

    tz_nbd_stats_get(server->reactor, server->volume, &stats);
    return stats;
}

static inline void wait_connections(served *server, uint64_t count)
{
    for (int i = 0; stats_of(server).connections != count; i++) {
        CHECK(i < TIMEOUT_S * 1000);
        usleep(1000);
    }
}

static inline void unix_pair(int ends[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
}

static inline void tcp_pair(int ends[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(ends[0], (struct sockaddr *)&address, sizeof(address)), 0);
    ends[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(ends[1] >= 0);
    close(listener);
}

/* Hands ends[1] over on these terms; ends[0] is the client's. */
static inline int attach_ends(served *server, const int ends[2], tz_nbd_config config)
{
    struct timeval timeout = {.tv_sec = TIMEOUT_S};

    CHECK_EQ(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), 0);
    CHECK_EQ(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)), 0);
    CHECK_EQ(tz_nbd_adopt(server->reactor, server->volume, ends[1], &config), 0);
    return ends[0];
}

static inline int attach_as(served *server, tz_nbd_config config)
{
    int ends[2];

    unix_pair(ends);
    return attach_ends(server, ends, config);
}

static inline int attach(served *server, unsigned flags)
{
    return attach_as(server, (tz_nbd_config){.flags = flags, .context_id = 7});
}

/* ---- the client's side ---- */

static inline void put(uint8_t *out, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--, value >>= 8)
        out[i] = (uint8_t)value;
}

static inline uint64_t get(const uint8_t *in, int bytes)
{
    uint64_t value = 0;

    for (int i = 0; i < bytes; i++)
        value = value << 8 | in[i];
    return value;
}

static inline void send_bytes(int fd, const void *bytes, size_t count)
{
    for (const char *at = bytes; count;) {
        ssize_t n = send(fd, at, count, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue; /* a time limit makes calls end so when the process was stopped */
        CHECK(n > 0);
        at += n;
        count -= (size_t)n;
    }
}

static inline void recv_bytes(int fd, void *bytes, size_t count)
{
    for (char *at = bytes; count;) {
        ssize_t n = recv(fd, at, count, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            fprintf(stderr, "received %zd (%s), %zu bytes to come\n", n, n ? strerror(errno) : "end", count);
        CHECK(n > 0);
        at += n;
        count -= (size_t)n;
    }
}

static inline void expect_end(int fd)
{
    char byte;
    ssize_t n;

    /* A thread that had a ring may be interrupted without a signal, and a socket with a timeout does not go on by itself. */
    do
        n = recv(fd, &byte, 1, 0);
    while (n < 0 && errno == EINTR);
    CHECK(n == 0 || (n < 0 && (errno == ECONNRESET || errno == EPIPE)));
    close(fd);
}

static inline void header(uint8_t out[28], int flags, int command, uint64_t cookie, uint64_t offset, uint32_t length)
{
    put(out, 0x25609513, 4);
    put(out + 4, (uint64_t)flags, 2);
    put(out + 6, (uint64_t)command, 2);
    put(out + 8, cookie, 8);
    put(out + 16, offset, 8);
    put(out + 24, length, 4);
}

static inline void ask(int fd, int flags, int command, uint64_t cookie, uint64_t offset, uint32_t length,
                       const void *payload)
{
    uint8_t bytes[28];

    header(bytes, flags, command, cookie, offset, length);
    send_bytes(fd, bytes, sizeof(bytes));
    if (payload)
        send_bytes(fd, payload, length);
}

/* The head of a simple reply: its error; its cookie goes into *cookie. */
static inline uint32_t simple(int fd, uint64_t *cookie)
{
    uint8_t bytes[16];

    recv_bytes(fd, bytes, sizeof(bytes));
    CHECK_EQ(get(bytes, 4), 0x67446698);
    *cookie = get(bytes + 8, 8);
    return (uint32_t)get(bytes + 4, 4);
}

static inline void expect_simple(int fd, uint64_t cookie, uint32_t error)
{
    uint64_t got;

    CHECK_EQ(simple(fd, &got), error);
    CHECK_EQ(got, cookie);
}

/* The header of a final structured chunk of this type: the length of its payload. */
static inline uint32_t expect_chunk(int fd, uint64_t cookie, int type)
{
    uint8_t bytes[20];

    recv_bytes(fd, bytes, sizeof(bytes));
    CHECK_EQ(get(bytes, 4), 0x668e33ef);
    CHECK_EQ(get(bytes + 4, 2), 1);
    CHECK_EQ(get(bytes + 6, 2), type);
    CHECK_EQ(get(bytes + 8, 8), cookie);
    return (uint32_t)get(bytes + 16, 4);
}

static inline void expect_error_chunk(int fd, uint64_t cookie, uint32_t error)
{
    uint32_t length = expect_chunk(fd, cookie, 32769);
    uint8_t bytes[512];

    CHECK(length > 6 && length <= sizeof(bytes));
    recv_bytes(fd, bytes, length);
    CHECK_EQ(get(bytes, 4), error);
    CHECK_EQ(get(bytes + 4, 2), length - 6);
}

/* Bytes that tell where they belong and which version they are. */
static inline void pattern(uint8_t *out, uint64_t offset, size_t length, unsigned version)
{
    for (size_t i = 0; i < length; i++) {
        uint64_t at = offset + i;

        out[i] = (uint8_t)((at >> 9) * 31 + at * 7 + version * 101 + 1);
    }
}

static inline void write_ok(int fd, uint64_t cookie, uint64_t offset, const void *data, uint32_t length)
{
    ask(fd, 0, WRITE, cookie, offset, length, data);
    expect_simple(fd, cookie, 0);
}

static inline void read_ok(int fd, uint64_t cookie, uint64_t offset, void *out, uint32_t length)
{
    ask(fd, 0, READ, cookie, offset, length, NULL);
    expect_simple(fd, cookie, 0);
    recv_bytes(fd, out, length);
}

#endif
