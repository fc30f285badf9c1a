/* SPDX-License-Identifier: Apache-2.0
 *
 * The progress of an op from one system call's result to the next: what is left, is it over, with what result.
 * Both engines and the workers ask the same judge, so an op ends alike whoever served it.
 *
 * Threads  pure, but for one fstat where a direct read stopped inside a block.
 */
#ifndef TZ_IO_TRANSFER_H
#define TZ_IO_TRANSFER_H

#include "engine.h"

/* One call moves at most this much: below the kernel's own limit, and a multiple of any block. */
#define TZ_TRANSFER_MAX ((uint64_t)1 << 30)

typedef enum tz_transfer_next {
    TZ_NEXT_DONE,  /* op->engine.result is set */
    TZ_NEXT_AGAIN, /* call again for the rest */
    TZ_NEXT_WAIT,  /* wait until the fd is ready (tz_transfer_events), then call again */
} tz_transfer_next;

/* Checks the owner's fields and resets the engine's. 0, or -EINVAL: the op's result. */
int tz_transfer_begin(tz_io_op *op);

/* Judges what a call for the op returned: a count or -errno. */
tz_transfer_next tz_transfer_judge(tz_io_op *op, int64_t got);

static inline struct iovec *tz_transfer_iov(const tz_io_op *op)
{
    return op->iov ? op->iov + op->engine.word[TZ_WORD_IOV] : NULL; /* not every op has vectors */
}

static inline uint32_t tz_transfer_iovs(const tz_io_op *op)
{
    return op->iovs - (uint32_t)op->engine.word[TZ_WORD_IOV];
}

static inline size_t tz_transfer_length(const struct iovec *iov)
{
    return (size_t)tz_min_u64(iov->iov_len, TZ_TRANSFER_MAX);
}

static inline bool tz_transfer_at_position(const tz_io_op *op)
{
    return op->offset == TZ_IO_AT_POSITION;
}

/* POLLIN or POLLOUT: what the op waits for when the fd is not ready. */
short tz_transfer_events(const tz_io_op *op);

/* Serves a file op with blocking calls, start to end; the result. For workers. */
int64_t tz_transfer_blocking(tz_io_op *op);

/* One non-blocking call of a RECV or SEND: a count or -errno. */
int64_t tz_transfer_socket(tz_io_op *op);

#endif
