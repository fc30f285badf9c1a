/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes at all, as the transmission phase of a connection to a real volume on a memory file.
 *
 *   input   byte 0: terms (1 structured, 2 block status, 4 read-only, 8 the threads engine)
 *           byte 1: requests in flight, 1 to 8      byte 2: how the stream is cut
 *           the rest: the stream
 *
 * What must hold: no sanitizer speaks; the server ends the connection once the stream has ended, within TIMEOUT_MS;
 * with structured replies, what it sent is a whole number of well-formed messages.
 */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "target.h"
#include "tz/nbd.h"

#define VOLUME_BYTES (192 * TZ_KIB + 1000)
#define TIMEOUT_MS   20000

typedef struct server {
    tz_reactor *reactor;
    tz_volume *volume;
} server;

/* Where the parser of the server's messages is: bytes of the message under way that are there, and to come. */
typedef struct replies {
    bool framed;
    uint8_t head[20];
    size_t have, skip;
} replies;

static server start(tz_io_kind kind)
{
    char path[64];
    tz_io_config io = {.kind = kind, .threads = 2};
    tz_volume_config config = {.path = path};
    server made;
    int fd = memfd_create("volume", MFD_CLOEXEC);

    REQUIRE(fd >= 0 && ftruncate(fd, VOLUME_BYTES) == 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    REQUIRE(tz_reactor_create(&made.reactor, &io) == 0);
    REQUIRE(tz_volume_open(&made.volume, tz_reactor_io(made.reactor), &config) == 0);
    close(fd);
    return made;
}

static server *server_for(unsigned terms)
{
    static server servers[2];
    server *chosen = &servers[terms & 8 ? 1 : 0];

    if (!chosen->reactor)
        *chosen = start(terms & 8 ? TZ_IO_THREADS : TZ_IO_AUTO);
    return chosen;
}

static void check_byte(replies *r, uint8_t byte)
{
    static const uint8_t simple[] = {0x67, 0x44, 0x66, 0x98}, chunk[] = {0x66, 0x8e, 0x33, 0xef};
    const uint8_t *h = r->head;

    r->head[r->have++] = byte;
    if (r->have == 16 && memcmp(h, simple, 4) == 0) {
        r->have = 0;
    } else if (r->have == 20) {
        REQUIRE(memcmp(h, chunk, 4) == 0);
        r->skip = (size_t)h[16] << 24 | (size_t)h[17] << 16 | (size_t)h[18] << 8 | h[19];
        REQUIRE(r->skip <= VOLUME_BYTES + 8);
        r->have = 0;
    }
}

static void check(replies *r, const uint8_t *bytes, size_t count)
{
    if (!r->framed)
        return;
    for (size_t i = 0; i < count; i++) {
        if (r->skip) {
            size_t n = r->skip < count - i ? r->skip : count - i;

            r->skip -= n;
            i += n - 1;
        } else {
            check_byte(r, bytes[i]);
        }
    }
}

/* Sends the stream in pieces and takes what comes back, until the server has closed. */
static void converse(int fd, const uint8_t *data, size_t size, unsigned cut, replies *r)
{
    static uint8_t buffer[65536];
    size_t piece = cut ? cut * (size_t)cut : SIZE_MAX;
    bool sending = true;

    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN | (sending ? POLLOUT : 0)};
        int ready = poll(&p, 1, TIMEOUT_MS);
        ssize_t n;

        if (ready < 0 && errno == EINTR) /* libFuzzer's own timer */
            continue;
        REQUIRE(ready == 1);
        if (sending && p.revents & (POLLOUT | POLLERR)) {
            n = send(fd, data, size < piece ? size : piece, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n > 0) {
                data += n;
                size -= (size_t)n;
            }
            if (size == 0 || (n < 0 && errno != EAGAIN)) {
                shutdown(fd, SHUT_WR);
                sending = false;
            }
        }
        if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
            n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN))
                return;
            if (n > 0)
                check(r, buffer, (size_t)n);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tz_nbd_config config = {.context_id = 1};
    replies r = {0};
    server *s;
    int ends[2];

    if (size < 3)
        return -1;
    s = server_for(data[0]);
    config.flags = (data[0] & 1 ? TZ_NBD_STRUCTURED : 0) | ((data[0] & 3) == 3 ? TZ_NBD_BASE_ALLOCATION : 0) |
                   (data[0] & 4 ? TZ_NBD_READ_ONLY : 0);
    config.max_requests = data[1] % 8 + 1;
    r.framed = data[0] & 1;
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    REQUIRE(tz_nbd_adopt(s->reactor, s->volume, ends[1], &config) == 0);
    converse(ends[0], data + 3, size - 3, data[2], &r);
    close(ends[0]);
    REQUIRE(r.have == 0 && r.skip == 0);
    return 0;
}
