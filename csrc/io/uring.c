/* SPDX-License-Identifier: Apache-2.0
 *
 * The io_uring engine: one ring, touched by its owner alone.
 *
 *   io->queue ──prepare──▶ SQ ──io_uring_enter──▶ kernel ──▶ CQ ──collect──▶ judge ─┬─ DONE  ▶ io->ready
 *       ▲                                                                          ├─ AGAIN ▶ io->queue
 *       └──────────────────────────────────────────────────────────────────────────┴─ WAIT  ▶ io->queue, as a poll
 *
 * There is no limit on ops in the kernel: sockets may wait there for ever and must not keep file ops out. What the CQ
 * cannot hold the kernel keeps (IORING_FEAT_NODROP) and hands over when asked.
 *
 * Sleep ends with a completion; a multishot poll of the eventfd makes completions of wake-ups. The
 * eventfd is never read: the poll tells of every write.
 *
 * With DEFER_TASKRUN the kernel completes nothing behind our back: it raises a flag in the SQ ring, which peek sees,
 * and works when we enter. The ring starts disabled, so that the thread that enables it becomes its one issuer.
 */
#if TZ_HAVE_URING

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"
#include "transfer.h"
#include "workers.h"

/* Block ioctls have no request of their own; they are few. */
#define HELPERS 4

/* Threads of the kernel for requests that would block (network and user-space file systems). Its own bound is four a
 * CPU: so few requests to a device that does not answer would keep those of all other files from being served. */
#define KERNEL_WORKERS 512

/* user_data that is not an op */
#define DATA_IGNORE 0
#define DATA_WAKE   1

typedef struct uring {
    tz_io io;
    struct io_uring ring;
    tz_workers *helpers;
    bool armed; /* the poll of the eventfd stands */
} uring;

static struct io_uring_sqe *take_sqe(uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (sqe)
        return sqe;
    io_uring_submit(&u->ring);
    return io_uring_get_sqe(&u->ring);
}

/* ---- an op into an SQE ---- */

static void prepare_file(struct io_uring_sqe *sqe, tz_io_op *op)
{
    uint64_t at = tz_transfer_at_position(op) ? UINT64_MAX : op->offset + (uint64_t)op->engine.progress;
    struct iovec *iov = tz_transfer_iov(op);
    uint32_t iovs = tz_transfer_iovs(op);

    if (op->opcode == TZ_IO_READ && iovs == 1)
        io_uring_prep_read(sqe, op->fd, iov->iov_base, (unsigned)tz_transfer_length(iov), at);
    else if (op->opcode == TZ_IO_READ)
        io_uring_prep_readv(sqe, op->fd, iov, iovs, at);
    else if (iovs == 1)
        io_uring_prep_write(sqe, op->fd, iov->iov_base, (unsigned)tz_transfer_length(iov), at);
    else
        io_uring_prep_writev(sqe, op->fd, iov, iovs, at);
    if (op->arg & TZ_IO_ASIDE)
        io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
}

/* MSG_WAITALL spares the round trips of a partial send; the judge takes care of kernels that ignore it. */
static void prepare_send(struct io_uring_sqe *sqe, tz_io_op *op)
{
    const int flags = MSG_NOSIGNAL | MSG_WAITALL;
    struct iovec *iov = tz_transfer_iov(op);

    if (tz_transfer_iovs(op) == 1) {
        io_uring_prep_send(sqe, op->fd, iov->iov_base, tz_transfer_length(iov), flags);
        return;
    }
    op->engine.msg = (struct msghdr){.msg_iov = iov, .msg_iovlen = tz_transfer_iovs(op)};
    io_uring_prep_sendmsg(sqe, op->fd, &op->engine.msg, flags);
}

static void prepare_timeout(struct io_uring_sqe *sqe, tz_io_op *op)
{
    struct __kernel_timespec *time = (void *)&op->engine.word[TZ_WORD_TIME];

    time->tv_sec = (int64_t)(op->length / 1000000000u);
    time->tv_nsec = (int64_t)(op->length % 1000000000u);
    io_uring_prep_timeout(sqe, time, 0, 0);
}

static void prepare(struct io_uring_sqe *sqe, tz_io_op *op)
{
    struct iovec *iov;

    switch (op->opcode) {
    case TZ_IO_READ:
    case TZ_IO_WRITE:
        prepare_file(sqe, op);
        break;
    case TZ_IO_DATASYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case TZ_IO_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, (int)op->arg, (off_t)op->offset, (off_t)op->length);
        break;
    case TZ_IO_RECV:
        iov = tz_transfer_iov(op);
        io_uring_prep_recv(sqe, op->fd, iov->iov_base, tz_transfer_length(iov), (int)op->arg);
        break;
    case TZ_IO_SEND:
        prepare_send(sqe, op);
        break;
    case TZ_IO_POLL:
        io_uring_prep_poll_add(sqe, op->fd, op->arg);
        break;
    case TZ_IO_TIMEOUT:
        prepare_timeout(sqe, op);
        break;
    case TZ_IO_BLKZERO:
    case TZ_IO_BLKTRIM:
        io_uring_prep_nop(sqe); /* never: these go to the helpers */
        break;
    }
}

/* Returns false when the ring takes no more for now. */
static bool start_one(uring *u, tz_io_op *op)
{
    struct io_uring_sqe *sqe;

    if (op->opcode == TZ_IO_BLKZERO || op->opcode == TZ_IO_BLKTRIM) {
        tz_op_list_remove(&u->io.queue, op);
        tz_workers_submit(u->helpers, op);
        return true;
    }
    sqe = take_sqe(u);
    if (!sqe)
        return false;
    tz_op_list_remove(&u->io.queue, op);
    if (op->engine.state & TZ_OP_UNREADY) {
        op->engine.state &= ~(uint32_t)TZ_OP_UNREADY;
        io_uring_prep_poll_add(sqe, op->fd, (unsigned)tz_transfer_events(op));
        tz_op_set_state(op, TZ_OP_WAITING);
    } else {
        prepare(sqe, op);
        tz_op_set_state(op, TZ_OP_STARTED);
    }
    io_uring_sqe_set_data(sqe, op);
    return true;
}

static void arm_wake(uring *u)
{
    struct io_uring_sqe *sqe = take_sqe(u);

    if (!sqe)
        return;
    io_uring_prep_poll_multishot(sqe, u->io.inbox.eventfd, POLLIN);
    io_uring_sqe_set_data64(sqe, DATA_WAKE);
    u->armed = true;
}

static void start_queued(uring *u)
{
    if (!u->armed)
        arm_wake(u);
    while (u->io.queue.head && start_one(u, u->io.queue.head))
        ;
}

/* ---- a CQE back into an op ---- */

static void complete(uring *u, tz_io_op *op, int64_t res)
{
    bool was_poll = tz_op_state(op) == TZ_OP_WAITING;

    if (op->opcode == TZ_IO_TIMEOUT && res == -ETIME)
        res = 0;
    /* To the judge both of these are an interruption: go on, unless the op was cancelled. */
    if ((was_poll && res >= 0) || (res == -ECANCELED && tz_op_cancelled(op)))
        res = -EINTR;
    switch (tz_transfer_judge(op, res)) {
    case TZ_NEXT_DONE:
        tz_op_ready(&u->io, op, op->engine.result);
        break;
    case TZ_NEXT_WAIT:
        op->engine.state |= TZ_OP_UNREADY;
        tz_op_enqueue(&u->io, op);
        break;
    case TZ_NEXT_AGAIN:
        tz_op_enqueue(&u->io, op);
        break;
    }
}

static void collect(uring *u)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;

    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        uint64_t data = io_uring_cqe_get_data64(cqe);

        seen++;
        if (data == DATA_WAKE)
            u->armed = cqe->flags & IORING_CQE_F_MORE;
        else if (data != DATA_IGNORE)
            complete(u, (tz_io_op *)(uintptr_t)data, cqe->res);
    }
    io_uring_cq_advance(&u->ring, seen);
}

static bool kernel_has_work(const uring *u)
{
    return IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN);
}

/* ---- the engine ---- */

static bool uring_peek(tz_io *io)
{
    uring *u = tz_container_of(io, uring, io);

    return io_uring_cq_ready(&u->ring) || kernel_has_work(u);
}

static int enter_and_wait(uring *u, int64_t timeout_ns)
{
    struct __kernel_timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_cqe *cqe;

    return io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, timeout_ns < 0 ? NULL : &limit, NULL);
}

static int uring_turn(tz_io *io, int64_t timeout_ns)
{
    uring *u = tz_container_of(io, uring, io);
    int rc = 0;

    collect(u);
    start_queued(u);
    if (timeout_ns != 0 && !io->ready.head && !io->queue.head && tz_inbox_sleep(&io->inbox)) {
        rc = enter_and_wait(u, timeout_ns);
        tz_inbox_awake(&io->inbox);
    } else if (io_uring_sq_ready(&u->ring) || kernel_has_work(u)) {
        rc = io_uring_submit_and_get_events(&u->ring);
    }
    collect(u);
    /* Time passed, a signal came, or the kernel wants its completions taken first: all of them our caller's next turn.
     */
    return rc == -ETIME || rc == -EINTR || rc == -EBUSY || rc == -EAGAIN ? 0 : rc;
}

static void uring_cancel(tz_io *io, tz_io_op *op)
{
    uring *u = tz_container_of(io, uring, io);
    struct io_uring_sqe *sqe;

    if (tz_op_state(op) == TZ_OP_WORKER) {
        if (tz_workers_cancel(u->helpers, op))
            tz_op_ready(io, op, -ECANCELED);
        return;
    }
    if (tz_op_cancelled(op))
        return;
    op->engine.state |= TZ_OP_CANCELLED;
    while (!(sqe = take_sqe(u))) {
        io_uring_get_events(&u->ring);
        collect(u);
        if (tz_op_state(op) == TZ_OP_READY)
            return;
    }
    io_uring_prep_cancel(sqe, op, 0);
    io_uring_sqe_set_data64(sqe, DATA_IGNORE);
}

static int uring_start(tz_io *io)
{
    const uring *u = tz_container_of(io, uring, io);
    uint32_t limits[2] = {KERNEL_WORKERS, 0};

    /* The shared liburing 2.3 declares io_uring_enable_rings and does not export it. */
    if (syscall(__NR_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    /* Where it cannot be had, the kernel's own bound holds. */
    (void)syscall(__NR_io_uring_register, u->ring.ring_fd, IORING_REGISTER_IOWQ_MAX_WORKERS, limits, 2);
    return 0;
}

static void uring_destroy(tz_io *io)
{
    uring *u = tz_container_of(io, uring, io);

    tz_workers_destroy(u->helpers);
    io_uring_queue_exit(&u->ring);
    tz_io_fini(io);
    free(u);
}

static const tz_engine uring_engine = {
    .kind = TZ_IO_URING,
    .start = uring_start,
    .turn = uring_turn,
    .peek = uring_peek,
    .cancel = uring_cancel,
    .destroy = uring_destroy,
};

/* From what the newest kernels like best down to what all of them know. */
static int make_ring(struct io_uring *ring, uint32_t depth, const char **step)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    /* EXT_ARG: waits with a timeout; RSRC_TAGS stands for 5.13, the first with multishot polls. */
    const unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS;
    int rc = -EINVAL;

    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags) && rc == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = flags[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
            .cq_entries = depth * 4,
        };

        rc = io_uring_queue_init_params(depth, ring, &params);
        if (rc == 0 && (params.features & needed) != needed) {
            io_uring_queue_exit(ring);
            if (step)
                *step = "io_uring features of Linux 5.13";
            return -ENOSYS;
        }
    }
    return rc;
}

int tz_uring_create(tz_io **out, const tz_io_config *config, const char **step)
{
    uring *u = aligned_alloc(TZ_CACHE_LINE, tz_align_up(sizeof(*u), TZ_CACHE_LINE));
    int rc;

    if (!u)
        return -ENOMEM;
    memset(u, 0, sizeof(*u));
    rc = make_ring(&u->ring, config->depth, step);
    if (rc < 0)
        goto free_memory;
    rc = tz_io_init(&u->io, &uring_engine, config);
    if (rc < 0)
        goto drop_ring;
    rc = tz_workers_create(&u->helpers, &u->io.inbox, HELPERS);
    if (rc < 0)
        goto close_inbox;
    *out = &u->io;
    return 0;

close_inbox:
    tz_io_fini(&u->io);
drop_ring:
    io_uring_queue_exit(&u->ring);
free_memory:
    free(u);
    return rc;
}

#else

typedef int tz_uring_is_not_built; /* ISO C wants something in a file */

#endif
