/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine of threads, for kernels and sandboxes without io_uring. It serves each kind of op where it blocks nobody:
 *
 *   READ WRITE DATASYNC FALLOCATE BLK*   workers ──▶ inbox ─────────────────────┐
 *   RECV SEND POLL   try at once ─▶ EAGAIN: WAITING in the bucket of its fd ────┼─▶ io->ready
 *                        ▲                    └─ epoll says ready, try again ───┤
 *   TIMEOUT          timers, sorted by deadline ────────────────────────────────┘
 *
 * Any number of ops may wait for one fd, but epoll knows an fd once: its registration is one-shot, and is armed for
 * the union of what the ops in the bucket want whenever one of them begins to wait.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "engine.h"
#include "transfer.h"
#include "workers.h"

#define BUCKETS 256
#define EVENTS  64

typedef struct threads_io {
    tz_io io;
    tz_workers *workers;
    int epoll;
    tz_op_list timers; /* nearest first */
    tz_op_list buckets[BUCKETS];
} threads_io;

static tz_op_list *bucket_of(threads_io *t, int fd)
{
    return &t->buckets[(unsigned)fd % BUCKETS];
}

/* ---- sockets and polls ---- */

/* What happened to the fd, as far as the op asked; errors and hang-ups always. */
static int64_t poll_once(const tz_io_op *op)
{
    struct pollfd p = {.fd = op->fd, .events = (short)op->arg};

    if (poll(&p, 1, 0) < 0)
        return -errno;
    if (p.revents & POLLNVAL)
        return -EBADF;
    return p.revents ? p.revents : -EAGAIN;
}

/* True when the op is over. */
static bool try_once(threads_io *t, tz_io_op *op)
{
    for (;;) {
        tz_transfer_next next = TZ_NEXT_WAIT;
        int64_t got = op->opcode == TZ_IO_POLL ? poll_once(op) : tz_transfer_socket(op);

        if (op->opcode != TZ_IO_POLL || got != -EAGAIN)
            next = tz_transfer_judge(op, got);
        if (next == TZ_NEXT_WAIT)
            return false;
        if (next == TZ_NEXT_DONE) {
            tz_op_ready(&t->io, op, op->engine.result);
            return true;
        }
    }
}

/* 0, or -errno of epoll. */
static int arm(threads_io *t, int fd)
{
    struct epoll_event event = {.events = EPOLLONESHOT, .data.fd = fd};

    for (tz_io_op *op = bucket_of(t, fd)->head; op; op = op->engine.next)
        if (op->fd == fd)
            event.events |= (uint16_t)tz_transfer_events(op);
    if (event.events == EPOLLONESHOT || epoll_ctl(t->epoll, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    if (errno == ENOENT && epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &event) == 0)
        return 0;
    return -errno;
}

static void wait_for_fd(threads_io *t, tz_io_op *op)
{
    int rc;

    tz_op_set_state(op, TZ_OP_WAITING);
    tz_op_list_push(bucket_of(t, op->fd), op);
    rc = arm(t, op->fd);
    if (rc < 0) {
        tz_op_list_remove(bucket_of(t, op->fd), op);
        tz_op_ready(&t->io, op, rc);
    }
}

static void fd_is_ready(threads_io *t, int fd)
{
    tz_op_list *bucket = bucket_of(t, fd);
    tz_op_list waiting = *bucket;
    tz_io_op *op;

    *bucket = (tz_op_list){NULL, NULL};
    while ((op = tz_op_list_pop(&waiting)))
        if (op->fd != fd || !try_once(t, op))
            tz_op_list_push(bucket, op);
    arm(t, fd); /* an fd that fails here was closed under its ops; they wait for their cancel */
}

static void take_events(threads_io *t)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(t->epoll, events, EVENTS, 0);

    for (int i = 0; i < count; i++)
        if (events[i].data.fd != t->io.inbox.eventfd)
            fd_is_ready(t, events[i].data.fd);
}

/* ---- timers ---- */

static uint64_t deadline_of(const tz_io_op *op)
{
    return op->engine.word[TZ_WORD_TIME];
}

/* From the end: timers of one length, the usual kind, come in order. */
static void start_timer(threads_io *t, tz_io_op *op)
{
    tz_io_op *before = t->timers.tail, *after;

    op->engine.word[TZ_WORD_TIME] = tz_now_ns() + op->length;
    while (before && deadline_of(before) > deadline_of(op))
        before = before->engine.prev;
    after = before ? before->engine.next : t->timers.head;
    op->engine.prev = before;
    op->engine.next = after;
    *(before ? &before->engine.next : &t->timers.head) = op;
    *(after ? &after->engine.prev : &t->timers.tail) = op;
    tz_op_set_state(op, TZ_OP_TIMER);
}

static void take_timers(threads_io *t)
{
    uint64_t now = t->timers.head ? tz_now_ns() : 0;

    while (t->timers.head && deadline_of(t->timers.head) <= now)
        tz_op_ready(&t->io, tz_op_list_pop(&t->timers), 0);
}

/* How long to sleep: not past the nearest timer. */
static int64_t bounded(const threads_io *t, int64_t timeout_ns)
{
    uint64_t now, left;

    if (!t->timers.head)
        return timeout_ns;
    now = tz_now_ns();
    left = deadline_of(t->timers.head) > now ? deadline_of(t->timers.head) - now : 0;
    return timeout_ns < 0 ? (int64_t)left : (int64_t)tz_min_u64((uint64_t)timeout_ns, left);
}

/* ---- the engine ---- */

static void start_one(threads_io *t, tz_io_op *op)
{
    switch (op->opcode) {
    case TZ_IO_RECV:
    case TZ_IO_SEND:
    case TZ_IO_POLL:
        if (!try_once(t, op))
            wait_for_fd(t, op);
        break;
    case TZ_IO_TIMEOUT:
        start_timer(t, op);
        break;
    default:
        tz_workers_submit(t->workers, op);
    }
}

static bool threads_peek(tz_io *io)
{
    const threads_io *t = tz_container_of(io, threads_io, io);
    struct pollfd p = {.fd = t->epoll, .events = POLLIN};

    return poll(&p, 1, 0) > 0 || (t->timers.head && bounded(t, -1) == 0);
}

/* ppoll on the epoll: nanoseconds on every kernel. Errors (EINTR) are a short sleep. */
static void sleep_for(threads_io *t, int64_t timeout_ns)
{
    struct pollfd p = {.fd = t->epoll, .events = POLLIN};
    struct timespec limit;

    timeout_ns = bounded(t, timeout_ns);
    limit = (struct timespec){.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    ppoll(&p, 1, timeout_ns < 0 ? NULL : &limit, NULL);
}

static int threads_turn(tz_io *io, int64_t timeout_ns)
{
    threads_io *t = tz_container_of(io, threads_io, io);
    tz_io_op *op;

    while ((op = tz_op_list_pop(&io->queue)))
        start_one(t, op);
    if (timeout_ns != 0 && !io->ready.head && tz_inbox_sleep(&io->inbox)) {
        sleep_for(t, timeout_ns);
        tz_inbox_awake(&io->inbox);
    }
    take_events(t);
    take_timers(t);
    return 0;
}

static void threads_cancel(tz_io *io, tz_io_op *op)
{
    threads_io *t = tz_container_of(io, threads_io, io);

    switch (tz_op_state(op)) {
    case TZ_OP_WAITING:
        tz_op_list_remove(bucket_of(t, op->fd), op);
        break;
    case TZ_OP_TIMER:
        tz_op_list_remove(&t->timers, op);
        break;
    default: /* with a worker */
        if (!tz_workers_cancel(t->workers, op))
            return;
    }
    tz_op_ready(io, op, op->opcode == TZ_IO_RECV && op->engine.progress ? op->engine.progress : -ECANCELED);
}

static int threads_start(tz_io *io)
{
    (void)io;
    return 0;
}

static void threads_destroy(tz_io *io)
{
    threads_io *t = tz_container_of(io, threads_io, io);

    tz_workers_destroy(t->workers);
    if (t->epoll >= 0)
        close(t->epoll);
    tz_io_fini(io);
    free(t);
}

static const tz_engine threads_engine = {
    .kind = TZ_IO_THREADS,
    .start = threads_start,
    .turn = threads_turn,
    .peek = threads_peek,
    .cancel = threads_cancel,
    .destroy = threads_destroy,
};

int tz_threads_create(tz_io **out, const tz_io_config *config)
{
    threads_io *t = aligned_alloc(TZ_CACHE_LINE, tz_align_up(sizeof(*t), TZ_CACHE_LINE));
    struct epoll_event wake = {.events = EPOLLIN | EPOLLET}; /* edges: the eventfd is never read */
    int rc;

    if (!t)
        return -ENOMEM;
    memset(t, 0, sizeof(*t));
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    rc = t->epoll < 0 ? -errno : 0;
    t->io.inbox.eventfd = -1;
    if (rc == 0)
        rc = tz_io_init(&t->io, &threads_engine, config);
    wake.data.fd = t->io.inbox.eventfd;
    if (rc == 0 && epoll_ctl(t->epoll, EPOLL_CTL_ADD, wake.data.fd, &wake) < 0)
        rc = -errno;
    if (rc == 0)
        rc = tz_workers_create(&t->workers, &t->io.inbox, config->threads);
    if (rc < 0) {
        threads_destroy(&t->io);
        return rc;
    }
    *out = &t->io;
    return 0;
}
