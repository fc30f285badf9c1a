/* SPDX-License-Identifier: Apache-2.0
 *
 * A stream, in order. A pipe's reader may stop reading for ever, so nothing here blocks in a write: the worker waits
 * for room with a POLL, which a cancel can end, and then writes what fits. The flags of the caller's descriptor
 * are shared with other processes and stay as they are; a pipe or terminal is opened anew for that.
 *
 *   BEGIN ─▶ write what fits ─▶ all written: done
 *                ▲    └─ EAGAIN ─▶ POLL ─┐
 *                └───────────────────────┘
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define TZ_PIPE_BYTES (1 * TZ_MIB)

typedef struct stream_sink {
    tz_sink base;
    int fd;
    bool socket;
    uint32_t written; /* of the chunk whose turn it is */
} stream_sink;

static ssize_t write_some(const stream_sink *sink, const uint8_t *data, size_t length)
{
    ssize_t n;

    do {
        n = sink->socket ? send(sink->fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT) : write(sink->fd, data, length);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* POLLERR and POLLHUP need no look: the write that follows says what is wrong. SIGPIPE is blocked in workers. */
static int store(tz_sink *base, tz_chunk *chunk)
{
    stream_sink *sink = tz_container_of(base, stream_sink, base);

    if (chunk->phase == 0) {
        tz_chunk_materialize(chunk, 1);
        sink->written = 0;
        chunk->phase = 1;
    } else if (chunk->result < 0) {
        return (int)chunk->result;
    }
    while (sink->written < chunk->length) {
        ssize_t n = write_some(sink, chunk->frame + sink->written, chunk->length - sink->written);

        if (n == -EAGAIN) {
            tz_chunk_poll(chunk, sink->fd, POLLOUT);
            return TZ_STEP_PENDING;
        }
        if (n < 0)
            return (int)n;
        sink->written += (uint32_t)n;
        chunk->written += (uint64_t)n;
    }
    return TZ_STEP_DONE;
}

static void destroy(tz_sink *base)
{
    stream_sink *sink = tz_container_of(base, stream_sink, base);

    close(sink->fd);
    free(sink);
}

static const tz_sink_ops stream_sink_ops = {.ordered = true, .store = store, .destroy = destroy};

/* A descriptor of the stream that does not block and is ours. Regular files never block for long, and
 * must keep their position. */
static int own_descriptor(int fd, const struct stat *st)
{
    char path[32];
    int own;

    if (S_ISSOCK(st->st_mode) || S_ISREG(st->st_mode) || S_ISBLK(st->st_mode)) {
        own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        return own < 0 ? -errno : own;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    own = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (own < 0)
        return S_ISFIFO(st->st_mode) && errno == ENXIO ? -EPIPE : -errno;
    if (S_ISFIFO(st->st_mode))
        (void)fcntl(own, F_SETPIPE_SZ, (int)TZ_PIPE_BYTES); /* fewer turns; refused is fine */
    return own;
}

int tz_sink_stream(tz_sink **out, int fd)
{
    stream_sink *sink;
    struct stat st;
    int own;

    if (fstat(fd, &st) < 0)
        return -errno;
    own = own_descriptor(fd, &st);
    if (own < 0)
        return own;
    sink = calloc(1, sizeof(*sink));
    if (!sink) {
        close(own);
        return -ENOMEM;
    }
    sink->base.ops = &stream_sink_ops;
    sink->fd = own;
    sink->socket = S_ISSOCK(st.st_mode);
    *out = &sink->base;
    return 0;
}
