/* SPDX-License-Identifier: Apache-2.0
 *
 * Asynchronous I/O: one interface, two engines (io_uring, threads).
 *
 * A tz_io is one thread's engine. The owner fills a tz_io_op, submits it, and learns the result in
 * the op's `done` callback, which runs on the owner's thread inside tz_io_run. The op and everything
 * it points to stay valid and untouched until then. A callback may submit further ops (its own too).
 *
 * File ops are whole: the engine itself goes on after a short transfer and after EINTR/EAGAIN, so a
 * READ returns less than asked only at end of file, and a WRITE returns all of it or an error.
 * Socket ops (RECV, SEND) return what one call would: RECV may be short (not with MSG_WAITALL, but for the end of
 * the stream), SEND is whole. SENDs of one socket are in order only when each waits for the one before.
 *
 * Errors   tz_io_submit never fails: what goes wrong is the op's result (-errno). A cancelled op
 *          completes with -ECANCELED (or with its result, if that came first; a file op that a thread
 *          has begun is not interrupted). A cancelled RECV that had bytes returns them.
 * Memory   no allocation after tz_io_create; the op is the caller's.
 * Threads  everything on the thread that calls tz_io_run, except tz_io_post, which is for all others.
 *          create may happen on another thread: the first call of tz_io_run makes the owner, and sets its timer
 *          slack to 1 us. destroy: any thread, after the last tz_io_run and every tz_io_post have returned.
 */
#ifndef TZ_IO_H
#define TZ_IO_H

#include <sys/socket.h>
#include <sys/uio.h>

#include "tz/common.h"

typedef struct tz_io tz_io;
typedef struct tz_io_op tz_io_op;
typedef struct tz_io_message tz_io_message;

typedef enum tz_io_kind {
    TZ_IO_AUTO = 0, /* io_uring where it works, else threads; TIMEZERO_IO is read by Python, not here */
    TZ_IO_URING = 1,
    TZ_IO_THREADS = 2,
} tz_io_kind;

typedef enum tz_io_opcode {
    TZ_IO_READ,      /* fd, offset, iov[0..iovs), arg = 0 or TZ_IO_ASIDE */
    TZ_IO_WRITE,     /* fd, offset, iov[0..iovs), arg = 0 or TZ_IO_ASIDE */
    TZ_IO_DATASYNC,  /* fd: fdatasync */
    TZ_IO_FALLOCATE, /* fd, offset, length, arg = FALLOC_FL_* mode */
    TZ_IO_BLKZERO,   /* block device: BLKZEROOUT offset, length (arg: 0) */
    TZ_IO_BLKTRIM,   /* block device: BLKDISCARD offset, length */
    TZ_IO_RECV,      /* socket fd, iov[0..1), arg = MSG_* flags; 0 = the peer closed */
    TZ_IO_SEND,      /* socket fd, iov[0..iovs): all of it, never SIGPIPE */
    TZ_IO_POLL,      /* fd, arg = POLLIN/POLLOUT/..., one shot; result = the ready events */
    TZ_IO_TIMEOUT,   /* length = nanoseconds from now; result 0 when it fires */
} tz_io_opcode;

typedef void (*tz_io_done)(tz_io_op *op, int64_t result);

#define TZ_IO_IOV_MAX 1024

/* READ, WRITE: as this offset, the file's own position (pipes and the like). */
#define TZ_IO_AT_POSITION UINT64_MAX

/* READ, WRITE: by a thread of the kernel's, even if it might do without. A user-space file system that does not answer
 * keeps whoever submits to it, although he asked not to wait, once a dozen requests are with it (fuse_get_req). */
#define TZ_IO_ASIDE 1

struct tz_io_op {
    /* The owner fills these. */
    tz_io_opcode opcode;
    int fd;
    uint32_t iovs;
    uint32_t arg;
    uint64_t offset;
    uint64_t length;
    struct iovec *iov; /* the engine may advance bases and lengths of the array while it goes on */
    tz_io_done done;
    void *user;

    /* The engine's own until done is called. */
    struct {
        tz_io_op *next, *prev;
        int64_t progress;
        int64_t result;
        struct iovec one; /* tz_io_read and friends point iov here */
        uint64_t word[6]; /* timespec, msghdr bookkeeping, ... */
        struct msghdr msg;
        uint32_t state;
    } engine;
};

/* A message to an engine from another thread: `run` is called on the owner's thread inside tz_io_run. */
struct tz_io_message {
    void (*run)(tz_io_message *message);
    tz_io_message *next;
};

typedef struct tz_io_config {
    tz_io_kind kind;
    uint32_t depth;   /* file ops in flight that must not wait in a queue of ours; 0 = 256 */
    uint32_t threads; /* workers of the threads engine for each file; 0 = 8 */
    uint32_t poll_us; /* look for work this long before sleeping, where that has paid off (polling.c); 0 = never */
} tz_io_config;

int tz_io_create(tz_io **out, const tz_io_config *config);
void tz_io_destroy(tz_io *io); /* asserts that nothing is in flight */

/* Which engine this is (URING or THREADS). */
tz_io_kind tz_io_engine(const tz_io *io);

/* Can this kernel and sandbox do io_uring with what we need? 0, or -errno with the step that failed in
 * *step (a static string) when step is not NULL. */
int tz_io_probe_uring(const char **step);

/* Queue an op; it starts at the latest in the next tz_io_run. */
void tz_io_submit(tz_io *io, tz_io_op *op);

/* Ask for an early end of a submitted op; its callback still comes, once. */
void tz_io_cancel(tz_io *io, tz_io_op *op);

/* Start what is queued, wait up to timeout_ns (negative: without limit; 0: do not wait) for a
 * completion or a message, run the callbacks that are due. Returns how many ran, or -errno. May return 0
 * early (a signal; a transfer that goes on): call it again. */
int tz_io_run(tz_io *io, int64_t timeout_ns);

/* How many ops were submitted and have not called back. */
uint32_t tz_io_inflight(const tz_io *io);

/* Any thread: run message->run on the owner's thread, soon. The message is the caller's until it runs. */
void tz_io_post(tz_io *io, tz_io_message *message);

/* Conveniences that fill an op for one buffer and submit it. */
void tz_io_read(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done);
void tz_io_write(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset, tz_io_done done);

void tz_io_read_aside(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done);
void tz_io_write_aside(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset,
                       tz_io_done done);

/* The same, done on the spot with a call that may block; the callback comes in tz_io_run as ever. For what is a short
 * copy anyway (tz_file.in_memory): io_uring hands reads and writes of tmpfs to a kernel thread, since the file system
 * does not know RWF_NOWAIT, and the hand-over costs more than a copy of 4 KiB (10.9 us of CPU an NBD request against
 * 4.9). Pages that were swapped out are waited for, as the thread would for its own. */
void tz_io_read_here(tz_io *io, tz_io_op *op, int fd, void *buffer, size_t length, uint64_t offset, tz_io_done done);
void tz_io_write_here(tz_io *io, tz_io_op *op, int fd, const void *buffer, size_t length, uint64_t offset,
                      tz_io_done done);

#endif
