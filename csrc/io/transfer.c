/* SPDX-License-Identifier: Apache-2.0
 *
 * See transfer.h. The states of a transfer:
 *
 *   begin ─▶ call ─▶ judge ─┬─ all moved, end of file, an error ─▶ DONE
 *             ▲             ├─ short, EINTR ─▶ AGAIN ─┐
 *             └─────────────┴─ EAGAIN ─▶ WAIT ────────┘      (cancelled: DONE instead of AGAIN and WAIT)
 */
#include "transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static bool moves_data(tz_io_opcode opcode)
{
    return opcode == TZ_IO_READ || opcode == TZ_IO_WRITE || opcode == TZ_IO_RECV || opcode == TZ_IO_SEND;
}

int tz_transfer_begin(tz_io_op *op)
{
    uint64_t total = 0;

    op->engine.state = 0;
    op->engine.progress = 0;
    op->engine.word[TZ_WORD_REMAINING] = 0;
    op->engine.word[TZ_WORD_IOV] = 0;
    if (op->opcode > TZ_IO_TIMEOUT)
        return -EINVAL;
    if (op->opcode == TZ_IO_TIMEOUT && op->length > INT64_MAX)
        return -EINVAL;
    if (!moves_data(op->opcode))
        return 0;
    if (op->iovs > TZ_IO_IOV_MAX || (op->opcode == TZ_IO_RECV && op->iovs != 1))
        return -EINVAL;
    for (uint32_t i = 0; i < op->iovs; i++)
        if (__builtin_add_overflow(total, op->iov[i].iov_len, &total))
            return -EINVAL;
    if (total > INT64_MAX)
        return -EINVAL;
    op->engine.word[TZ_WORD_REMAINING] = total;
    return 0;
}

static void advance(tz_io_op *op, uint64_t moved)
{
    op->engine.progress += (int64_t)moved;
    op->engine.word[TZ_WORD_REMAINING] -= moved;
    while (moved) {
        struct iovec *iov = tz_transfer_iov(op);
        uint64_t step = tz_min_u64(moved, iov->iov_len);

        iov->iov_base = (char *)iov->iov_base + step;
        iov->iov_len -= step;
        moved -= step;
        if (iov->iov_len == 0)
            op->engine.word[TZ_WORD_IOV]++;
    }
}

static tz_transfer_next over(tz_io_op *op, int64_t result)
{
    op->engine.result = result;
    return TZ_NEXT_DONE;
}

static tz_transfer_next go_on(tz_io_op *op, tz_transfer_next next)
{
    if (!tz_op_cancelled(op))
        return next;
    /* Bytes that left the socket's queue must reach the owner. */
    return over(op, op->opcode == TZ_IO_RECV && op->engine.progress ? op->engine.progress : -ECANCELED);
}

/* A direct read that stops inside a block has met the end of the file; asking for the rest is EINVAL, because the rest
 * is not aligned. The size decides: a short read must not pass for the end of the file. */
static bool stopped_at_end(const tz_io_op *op)
{
    struct stat st;

    return op->engine.progress && fstat(op->fd, &st) == 0 && S_ISREG(st.st_mode) &&
           op->offset + (uint64_t)op->engine.progress >= (uint64_t)st.st_size;
}

static tz_transfer_next judge_error(tz_io_op *op, int64_t error)
{
    bool retries = moves_data(op->opcode);

    if (error == -EINTR)
        return go_on(op, TZ_NEXT_AGAIN);
    if (error == -EAGAIN && retries && !(op->opcode == TZ_IO_RECV && (op->arg & MSG_DONTWAIT)))
        return go_on(op, TZ_NEXT_WAIT);
    if (op->opcode == TZ_IO_RECV && op->engine.progress)
        return over(op, op->engine.progress);
    if (op->opcode == TZ_IO_READ && error == -EINVAL && stopped_at_end(op))
        return over(op, op->engine.progress);
    return over(op, error);
}

tz_transfer_next tz_transfer_judge(tz_io_op *op, int64_t got)
{
    uint64_t remaining = op->engine.word[TZ_WORD_REMAINING];

    if (got < 0)
        return judge_error(op, got);
    if (!moves_data(op->opcode))
        return over(op, op->opcode == TZ_IO_POLL ? got : 0);
    if ((uint64_t)got >= remaining) /* MSG_TRUNC may say more than fits */
        return over(op, op->engine.progress + got);
    if (got == 0)
        return over(op, op->opcode == TZ_IO_READ || op->opcode == TZ_IO_RECV ? op->engine.progress : -EIO);
    advance(op, (uint64_t)got);
    if (op->opcode == TZ_IO_RECV && ((op->arg & MSG_PEEK) || !(op->arg & MSG_WAITALL)))
        return over(op, op->engine.progress);
    return go_on(op, TZ_NEXT_AGAIN);
}

short tz_transfer_events(const tz_io_op *op)
{
    if (op->opcode == TZ_IO_POLL)
        return (short)op->arg;
    return op->opcode == TZ_IO_READ || op->opcode == TZ_IO_RECV ? POLLIN : POLLOUT;
}

int64_t tz_transfer_socket(tz_io_op *op)
{
    struct iovec *iov = tz_transfer_iov(op);
    ssize_t got;

    if (op->opcode == TZ_IO_RECV) {
        got = recv(op->fd, iov->iov_base, tz_transfer_length(iov),
                   (int)(op->arg & ~(uint32_t)MSG_WAITALL) | MSG_DONTWAIT);
    } else {
        op->engine.msg = (struct msghdr){.msg_iov = iov, .msg_iovlen = tz_transfer_iovs(op)};
        got = sendmsg(op->fd, &op->engine.msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    return got < 0 ? -errno : got;
}

/* ---- blocking calls, for workers ---- */

static int64_t call_range_ioctl(const tz_io_op *op, unsigned long request)
{
    uint64_t range[2] = {op->offset, op->length};

    return ioctl(op->fd, request, range);
}

static int64_t call_once(tz_io_op *op)
{
    struct iovec *iov = tz_transfer_iov(op);
    int iovs = (int)tz_transfer_iovs(op);
    off_t at = (off_t)(op->offset + (uint64_t)op->engine.progress);

    switch (op->opcode) {
    case TZ_IO_READ:
        return tz_transfer_at_position(op) ? readv(op->fd, iov, iovs) : preadv(op->fd, iov, iovs, at);
    case TZ_IO_WRITE:
        return tz_transfer_at_position(op) ? writev(op->fd, iov, iovs) : pwritev(op->fd, iov, iovs, at);
    case TZ_IO_DATASYNC:
        return fdatasync(op->fd);
    case TZ_IO_FALLOCATE:
        return fallocate(op->fd, (int)op->arg, (off_t)op->offset, (off_t)op->length);
    case TZ_IO_BLKZERO:
        return call_range_ioctl(op, BLKZEROOUT);
    case TZ_IO_BLKTRIM:
        return call_range_ioctl(op, BLKDISCARD);
    default:
        errno = EINVAL; /* never: engines send only file ops to workers */
        return -1;
    }
}

int64_t tz_transfer_blocking(tz_io_op *op)
{
    for (;;) {
        int64_t got = call_once(op);

        switch (tz_transfer_judge(op, got < 0 ? -errno : got)) {
        case TZ_NEXT_DONE:
            return op->engine.result;
        case TZ_NEXT_WAIT:
            poll(&(struct pollfd){.fd = op->fd, .events = tz_transfer_events(op)}, 1, -1);
            break;
        case TZ_NEXT_AGAIN:
            break;
        }
    }
}
