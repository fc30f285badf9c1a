/* SPDX-License-Identifier: Apache-2.0
 *
 * The face of tz_io: what does not depend on the engine. See engine.h for the life of an op.
 *
 * The mailbox. Posters push onto a stack and look at `asleep`; the owner raises `asleep`, looks at the
 * stack, and only then sleeps. Both orders are sequentially consistent, so at least one of the two sees the other: no
 * wake-up is lost, and none is paid for while the owner is awake or already being woken.
 *
 *   poster                                 owner
 *   push(message)                          asleep = true
 *   if exchange(asleep, false)             if stack empty: sleep on the eventfd
 *       write(eventfd)                     asleep = false, take the whole stack, reverse it
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "engine.h"
#include "transfer.h"

/* ---- the mailbox ---- */

static void wake(tz_inbox *inbox)
{
    uint64_t one = 1;

    /* The load keeps posters from fighting over the line of an owner who is awake. */
    if (atomic_load(&inbox->asleep) && atomic_exchange(&inbox->asleep, false)) {
        ssize_t written = write(inbox->eventfd, &one, sizeof(one));
        (void)written; /* fails only when the counter is full, and then the owner has been woken */
    }
}

void tz_io_post(tz_io *io, tz_io_message *message)
{
    tz_io_message *head = atomic_load_explicit(&io->inbox.messages, memory_order_relaxed);

    do
        message->next = head;
    while (!atomic_compare_exchange_weak(&io->inbox.messages, &head, message));
    wake(&io->inbox);
}

void tz_inbox_complete(tz_inbox *inbox, tz_io_op *op)
{
    tz_io_op *head = atomic_load_explicit(&inbox->completed, memory_order_relaxed);

    do
        op->engine.next = head;
    while (!atomic_compare_exchange_weak(&inbox->completed, &head, op));
    wake(inbox);
}

bool tz_inbox_any(tz_inbox *inbox)
{
    return atomic_load(&inbox->messages) || atomic_load(&inbox->completed);
}

bool tz_inbox_sleep(tz_inbox *inbox)
{
    atomic_store(&inbox->asleep, true);
    if (!tz_inbox_any(inbox))
        return true;
    tz_inbox_awake(inbox);
    return false;
}

void tz_inbox_awake(tz_inbox *inbox)
{
    atomic_store(&inbox->asleep, false);
}

static int run_messages(tz_io *io)
{
    tz_io_message *stack = atomic_exchange(&io->inbox.messages, NULL), *message = NULL;
    int ran = 0;

    while (stack) { /* newest first: reverse */
        tz_io_message *next = stack->next;

        stack->next = message;
        message = stack;
        stack = next;
    }
    while (message) {
        tz_io_message *next = message->next; /* running it gives it back */

        message->run(message);
        message = next;
        ran++;
    }
    return ran;
}

static void collect_completed(tz_io *io)
{
    tz_io_op *stack = atomic_exchange(&io->inbox.completed, NULL), *op = NULL;

    while (stack) {
        tz_io_op *next = stack->engine.next;

        stack->engine.next = op;
        op = stack;
        stack = next;
    }
    while (op) {
        tz_io_op *next = op->engine.next;

        tz_op_ready(io, op, op->engine.result);
        op = next;
    }
}

/* ---- life ---- */

int tz_io_init(tz_io *io, const tz_engine *engine, const tz_io_config *config)
{
    io->engine = engine;
    tz_polling_init(&io->polling, config->poll_us);
    io->inbox.eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return io->inbox.eventfd < 0 ? -errno : 0;
}

void tz_io_fini(tz_io *io)
{
    if (io->inbox.eventfd >= 0)
        close(io->inbox.eventfd);
}

int tz_io_create(tz_io **out, const tz_io_config *config)
{
    tz_io_config c = *config;

    c.depth = c.depth ? c.depth : 256;
    c.threads = c.threads ? c.threads : 8;
    if (c.kind > TZ_IO_THREADS || c.depth > 1u << 15 || c.threads > 1024 || c.poll_us > 1000000)
        return -EINVAL;
    if (c.kind != TZ_IO_THREADS) {
        int rc = tz_io_probe_uring(NULL);

#if TZ_HAVE_URING
        if (rc == 0)
            rc = tz_uring_create(out, &c, NULL);
#endif
        if (rc == 0 || c.kind == TZ_IO_URING)
            return rc;
    }
    return tz_threads_create(out, &c);
}

void tz_io_destroy(tz_io *io)
{
    if (!io)
        return;
    assert(io->inflight == 0);
    io->engine->destroy(io);
}

static void nothing_done(tz_io_op *op, int64_t result)
{
    (void)result;
    op->user = NULL;
}

/* A ring that the sandbox lets us make may still refuse to run: the proof is an op that comes back. */
int tz_io_probe_uring(const char **step)
{
#if TZ_HAVE_URING
    tz_io_op op = {.opcode = TZ_IO_TIMEOUT, .length = 0, .done = nothing_done, .user = &op};
    const char *at = "io_uring_setup";
    tz_io *io;
    unsigned long slack = (unsigned long)prctl(PR_GET_TIMERSLACK, 0ul, 0ul, 0ul, 0ul);
    int rc = tz_uring_create(&io, &(tz_io_config){.depth = 4, .threads = 1}, &at);

    if (rc == 0) {
        tz_io_submit(io, &op);
        while (rc >= 0 && op.user)
            rc = tz_io_run(io, -1);
        at = io->started ? "io_uring_enter" : "io_uring_register";
        io->inflight = 0; /* a ring that failed to run is dropped with what it holds */
        io->engine->destroy(io);
        prctl(PR_SET_TIMERSLACK, slack, 0ul, 0ul, 0ul); /* this thread is not going to be an owner */
    }
    if (rc < 0 && step)
        *step = at;
    return rc < 0 ? rc : 0;
#else
    (void)nothing_done;
    if (step)
        *step = "built without liburing";
    return -ENOSYS;
#endif
}

tz_io_kind tz_io_engine(const tz_io *io)
{
    return io->engine->kind;
}

uint32_t tz_io_inflight(const tz_io *io)
{
    return io->inflight;
}

/* ---- ops ---- */

static bool is_of_file(const tz_io_op *op)
{
    return op->opcode < TZ_IO_RECV;
}

static void count_in(tz_io *io, const tz_io_op *op)
{
    io->inflight++;
    io->files += is_of_file(op);
}

void tz_io_submit(tz_io *io, tz_io_op *op)
{
    int rc = tz_transfer_begin(op);

    count_in(io, op);
    if (rc < 0)
        tz_op_ready(io, op, rc);
    else
        tz_op_enqueue(io, op);
}

void tz_io_cancel(tz_io *io, tz_io_op *op)
{
    switch (tz_op_state(op)) {
    case TZ_OP_READY:
        return;
    case TZ_OP_QUEUED: /* perhaps for the rest of a transfer */
        tz_op_list_remove(&io->queue, op);
        tz_op_ready(io, op, op->opcode == TZ_IO_RECV && op->engine.progress ? op->engine.progress : -ECANCELED);
        return;
    default:
        io->engine->cancel(io, op);
    }
}

static void submit_here(tz_io *io, tz_io_op *op)
{
    int rc = tz_transfer_begin(op);

    count_in(io, op);
    tz_op_ready(io, op, rc < 0 ? rc : tz_transfer_blocking(op));
}

static void fill_one(tz_io_op *op, tz_io_opcode opcode, int fd, void *buffer, size_t length, uint64_t offset,
                     tz_io_done done)
{
    op->engine.one = (struct iovec){.iov_base = buffer, .iov_len = length};
    op->iov = &op->engine.one;
    op->iovs = 1;
    op->arg = 0;
    op->opcode = opcode;
    op->fd = fd;
    op->offset = offset;
    op->done = done;
}

void tz_io_read(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    fill_one(op, TZ_IO_READ, fd, buffer, length, offset, done);
    tz_io_submit(io, op);
}

void tz_io_read_aside(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    fill_one(op, TZ_IO_READ, fd, buffer, length, offset, done);
    op->arg = TZ_IO_ASIDE;
    tz_io_submit(io, op);
}

void tz_io_read_here(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    fill_one(op, TZ_IO_READ, fd, buffer, length, offset, done);
    submit_here(io, op);
}

void tz_io_write(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset, tz_io_done done)
{
    fill_one(op, TZ_IO_WRITE, fd, (void *)(uintptr_t)buffer, length, offset, done);
    tz_io_submit(io, op);
}

void tz_io_write_aside(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset,
                       tz_io_done done)
{
    fill_one(op, TZ_IO_WRITE, fd, (void *)(uintptr_t)buffer, length, offset, done);
    op->arg = TZ_IO_ASIDE;
    tz_io_submit(io, op);
}

void tz_io_write_here(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset,
                      tz_io_done done)
{
    fill_one(op, TZ_IO_WRITE, fd, (void *)(uintptr_t)buffer, length, offset, done);
    submit_here(io, op);
}

/* ---- running ---- */

static int deliver(tz_io *io)
{
    tz_op_list due = io->ready; /* what callbacks add is for the next time */
    tz_io_op *op;
    int ran = 0;

    io->ready = (tz_op_list){NULL, NULL};
    while ((op = tz_op_list_pop(&due))) {
        io->inflight--;
        io->files -= is_of_file(op);
        op->done(op, op->engine.result);
        ran++;
    }
    return ran;
}

static int start(tz_io *io)
{
    int rc = io->engine->start(io);

    if (rc < 0)
        return rc;
    io->owner = pthread_self();
    io->started = true;
    /* The default slack of 50 us would be half of a 100 us timer. */
    prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    return 0;
}

int tz_io_run(tz_io *io, int64_t timeout_ns)
{
    int rc = io->started ? 0 : start(io);

    if (rc < 0)
        return rc;
    assert(pthread_equal(io->owner, pthread_self()));
    rc = timeout_ns == 0 || tz_io_anything_due(io) ? io->engine->turn(io, 0) : tz_polling_turn(io, timeout_ns);
    if (rc < 0)
        return rc;
    collect_completed(io);
    rc = deliver(io);
    return rc + run_messages(io);
}
