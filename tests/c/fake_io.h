/* SPDX-License-Identifier: Apache-2.0
 *
 * An engine for tests whose every step is drawn from a seed: file ops are carried out in parts, in any order, and
 * complete some steps after their last part, so that what an update and a read see of each other is as bad as it
 * can be on a real disk, and repeats. It stands in for csrc/io when a test is linked with it.
 *
 * Timers longer than a second are deadlines: they fire only when fake_fire_deadlines is called.
 */
#ifndef TZ_TESTS_FAKE_IO_H
#define TZ_TESTS_FAKE_IO_H

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "check.h"
#include "tz/io.h"

#define FAKE_OPS 4096

enum {
    FAKE_QUEUED,
    FAKE_EXECUTED,
    FAKE_CANCELLED
};

struct tz_io {
    tz_io_op *ops[FAKE_OPS];
    uint32_t count;
    _Atomic(tz_io_message *) messages; /* newest first; other threads may post, one takes */
    uint64_t seed;
    uint32_t stall_one_in;                       /* steps in which an op is left alone though it was drawn */
    int (*fault)(tz_io *io, const tz_io_op *op); /* -errno instead of carrying the op out; 0: carry it out */
    bool (*silent)(const tz_io_op *op);          /* the op gets no answer, as long as this says so */
};

static uint64_t fake_random(uint64_t *seed, uint64_t below)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed % below;
}

int tz_io_create(tz_io **out, const tz_io_config *config)
{
    (void)config;
    *out = calloc(1, sizeof(**out));
    CHECK(*out);
    (*out)->seed = 88172645463325252u;
    return 0;
}

void tz_io_destroy(tz_io *io)
{
    CHECK(io->count == 0);
    free(io);
}

void tz_io_submit(tz_io *io, tz_io_op *op)
{
    CHECK(io->count < FAKE_OPS);
    op->engine.state = FAKE_QUEUED;
    op->engine.progress = 0;
    io->ops[io->count++] = op;
}

void tz_io_cancel(tz_io *io, tz_io_op *op)
{
    (void)io;
    if (op->opcode == TZ_IO_POLL || op->opcode == TZ_IO_TIMEOUT)
        op->engine.state = FAKE_CANCELLED;
}

void tz_io_post(tz_io *io, tz_io_message *message)
{
    message->next = atomic_load(&io->messages);
    while (!atomic_compare_exchange_weak(&io->messages, &message->next, message))
        ;
}

uint32_t tz_io_inflight(const tz_io *io)
{
    return io->count;
}

static void fake_buffer_op(tz_io *io, tz_io_op *op, tz_io_opcode opcode, int fd, void *buffer, size_t length,
                           uint64_t offset, tz_io_done done)
{
    op->opcode = opcode;
    op->fd = fd;
    op->engine.one = (struct iovec){buffer, length};
    op->iov = &op->engine.one;
    op->iovs = 1;
    op->offset = offset;
    op->done = done;
    tz_io_submit(io, op);
}

void tz_io_read(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    fake_buffer_op(io, op, TZ_IO_READ, fd, buffer, length, offset, done);
}

void tz_io_write(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    fake_buffer_op(io, op, TZ_IO_WRITE, fd, (void *)buffer, length, offset, done);
}

void tz_io_read_aside(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    tz_io_read(io, op, fd, buffer, length, offset, done);
}

void tz_io_write_aside(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset,
                       tz_io_done done)
{
    tz_io_write(io, op, fd, buffer, length, offset, done);
}

/* What is done on the spot is only one of the orders that may happen. */
void tz_io_read_here(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    tz_io_read(io, op, fd, buffer, length, offset, done);
}

void tz_io_write_here(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset,
                      tz_io_done done)
{
    tz_io_write(io, op, fd, buffer, length, offset, done);
}

/* One part of a transfer: a random number of 4 KiB blocks. */
static void fake_transfer_part(tz_io *io, tz_io_op *op)
{
    uint64_t at = (uint64_t)op->engine.progress, left = op->iov->iov_len - at;
    uint64_t part = tz_min_u64(left, 4096 * (1 + fake_random(&io->seed, 8)));
    char *place = (char *)op->iov->iov_base + at;
    ssize_t n;

    CHECK(op->iovs == 1);
    n = op->opcode == TZ_IO_READ ? pread(op->fd, place, part, (off_t)(op->offset + at))
                                 : pwrite(op->fd, place, part, (off_t)(op->offset + at));
    if (n < 0) {
        op->engine.result = -errno;
        op->engine.state = FAKE_EXECUTED;
        return;
    }
    op->engine.progress += n;
    op->engine.result = op->engine.progress;
    if ((uint64_t)n < part || (uint64_t)op->engine.progress == op->iov->iov_len)
        op->engine.state = FAKE_EXECUTED;
}

static void fake_execute(tz_io *io, tz_io_op *op)
{
    int error = io->fault ? io->fault(io, op) : 0;

    if (error) {
        op->engine.result = error;
        op->engine.state = FAKE_EXECUTED;
        return;
    }
    switch (op->opcode) {
    case TZ_IO_READ:
    case TZ_IO_WRITE:
        fake_transfer_part(io, op);
        return;
    case TZ_IO_DATASYNC:
        op->engine.result = 0; /* no test pulls the plug, and a real one would wait for the disk */
        break;
    case TZ_IO_FALLOCATE:
        op->engine.result = fallocate(op->fd, (int)op->arg, (off_t)op->offset, (off_t)op->length) < 0 ? -errno : 0;
        break;
    case TZ_IO_BLKZERO:
    case TZ_IO_BLKTRIM: {
        uint64_t range[2] = {op->offset, op->length};

        op->engine.result =
            ioctl(op->fd, op->opcode == TZ_IO_BLKZERO ? BLKZEROOUT : BLKDISCARD, range) < 0 ? -errno : 0;
        break;
    }
    case TZ_IO_POLL: {
        struct pollfd p = {.fd = op->fd, .events = (short)op->arg};

        if (poll(&p, 1, 0) <= 0)
            return;
        op->engine.result = p.revents;
        break;
    }
    case TZ_IO_TIMEOUT:
        if (op->length > 1000000000)
            return;
        op->engine.result = 0;
        break;
    default:
        CHECK(!"an opcode that the fake engine does not know");
    }
    op->engine.state = FAKE_EXECUTED;
}

static void fake_complete(tz_io *io, uint32_t i)
{
    tz_io_op *op = io->ops[i];
    int64_t result = op->engine.state == FAKE_CANCELLED ? -ECANCELED : op->engine.result;

    io->ops[i] = io->ops[--io->count];
    op->done(op, result);
}

/* The next step of op i. */
static void fake_step_at(tz_io *io, uint32_t i)
{
    if (io->ops[i]->engine.state == FAKE_QUEUED)
        fake_execute(io, io->ops[i]);
    else
        fake_complete(io, i);
}

static bool fake_run_message(tz_io *io)
{
    tz_io_message *message = atomic_load(&io->messages);

    while (message && !atomic_compare_exchange_weak(&io->messages, &message, message->next))
        ;
    if (!message)
        return false;
    message->run(message);
    return true;
}

/* One step of one op, drawn at random, or one message. */
static inline void fake_step(tz_io *io)
{
    uint32_t i;

    if (fake_run_message(io) || io->count == 0)
        return;
    i = (uint32_t)fake_random(&io->seed, io->count);
    if (io->silent && io->silent(io->ops[i]))
        return;
    if (!io->stall_one_in || fake_random(&io->seed, io->stall_one_in) != 0)
        fake_step_at(io, i);
}

static inline void fake_fire_deadlines(tz_io *io)
{
    for (uint32_t i = 0; i < io->count; i++)
        if (io->ops[i]->opcode == TZ_IO_TIMEOUT && io->ops[i]->length > 1000000000) {
            io->ops[i]->engine.result = 0;
            io->ops[i]->engine.state = FAKE_EXECUTED;
        }
}

#endif
