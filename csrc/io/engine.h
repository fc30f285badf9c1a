/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two engines share: the life of an op, the mailbox, the table of functions an engine provides.
 *
 *              tz_io_submit          engine starts it           result is known        tz_io_run
 *   (caller's) ───────────▶ QUEUED ──────────────────▶ STARTED ────────────────▶ READY ─────────▶ done()
 *                             ▲                          │  │                      ▲
 *                             └── goes on after a short ─┘  └─ WAITING (the fd is ─┘
 *                                 transfer (uring)             not ready: EAGAIN)
 *
 *   tz_io_cancel: QUEUED and WAITING (threads) turn READY at once with -ECANCELED; STARTED is asked to end
 *   and judged when it does; READY keeps its result. `done` is called from one place only, tz_io_run,
 *   never below a call of submit or cancel, so callbacks nest nothing.
 *
 * Threads  the owner's alone, but for struct tz_inbox, whose atomics other threads touch.
 */
#ifndef TZ_IO_ENGINE_H
#define TZ_IO_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "tz/io.h"

/* op->engine.state: one of these, and flags. */
enum {
    TZ_OP_QUEUED = 1,  /* in io->queue */
    TZ_OP_STARTED = 2, /* with the kernel */
    TZ_OP_WORKER = 3,  /* with a worker, who may read this word: it does not change before the op comes back */
    TZ_OP_WAITING = 4, /* for its fd: in a bucket of the threads engine, or a poll in the ring */
    TZ_OP_TIMER = 5,   /* in the timer list of the threads engine */
    TZ_OP_READY = 6,   /* in io->ready, result known */
    TZ_OP_STATE = 0xff,
    TZ_OP_CANCELLED = 0x100, /* asked to end early */
    TZ_OP_UNREADY = 0x200,   /* uring: the fd said EAGAIN, poll it before the next try */
};

/* op->engine.word: what the engines keep there. */
enum {
    TZ_WORD_REMAINING = 0, /* bytes still to transfer */
    TZ_WORD_IOV = 1,       /* first iov that is not used up */
    TZ_WORD_TIME = 2,      /* and 3: struct __kernel_timespec (uring); the deadline in ns (threads) */
    TZ_WORD_UNTAKEN = 4,   /* under the workers' lock: no worker has taken it yet */
};

typedef struct tz_op_list {
    tz_io_op *head, *tail;
} tz_op_list;

/* Where other threads leave things for the owner. */
typedef struct tz_inbox {
    _Alignas(TZ_CACHE_LINE) _Atomic(tz_io_message *) messages; /* stacks: newest first */
    _Atomic(tz_io_op *) completed;                             /* by workers, result set */
    atomic_bool asleep; /* the owner sleeps, or is about to: whoever turns this to false writes the eventfd */
    int eventfd;
} tz_inbox;

typedef struct tz_engine {
    tz_io_kind kind;
    int (*start)(tz_io *io);                    /* once, on the owner's thread */
    int (*turn)(tz_io *io, int64_t timeout_ns); /* start io->queue, wait, put what ended into io->ready */
    bool (*peek)(tz_io *io);                    /* may turn have something to collect? cheap: called in a spin */
    void (*cancel)(tz_io *io, tz_io_op *op);    /* op is neither QUEUED nor READY */
    void (*destroy)(tz_io *io);                 /* frees io */
} tz_engine;

/* What polling has learnt (polling.c has the reasons). */
typedef struct tz_polling {
    uint64_t window_ns; /* how long a spin may last; 0: never */
    uint32_t score;     /* above 0: spin before sleeping */
    uint32_t streak;    /* short waits in a row while not spinning */
    uint32_t needed;    /* as many of them start it */
} tz_polling;

/* The head of both engines' objects. */
struct tz_io {
    const tz_engine *engine;
    tz_op_list queue, ready;
    uint32_t inflight;
    bool started;
    pthread_t owner;
    uint32_t files; /* of inflight: those that wait for a file, not for a peer or a clock */
    tz_polling polling;
    tz_inbox inbox;
};

/* ---- lists ---- */

static inline void tz_op_list_push(tz_op_list *list, tz_io_op *op)
{
    op->engine.next = NULL;
    op->engine.prev = list->tail;
    if (list->tail)
        list->tail->engine.next = op;
    else
        list->head = op;
    list->tail = op;
}

static inline void tz_op_list_remove(tz_op_list *list, tz_io_op *op)
{
    *(op->engine.prev ? &op->engine.prev->engine.next : &list->head) = op->engine.next;
    *(op->engine.next ? &op->engine.next->engine.prev : &list->tail) = op->engine.prev;
}

static inline tz_io_op *tz_op_list_pop(tz_op_list *list)
{
    tz_io_op *op = list->head;

    if (op)
        tz_op_list_remove(list, op);
    return op;
}

/* ---- states ---- */

static inline uint32_t tz_op_state(const tz_io_op *op)
{
    return op->engine.state & TZ_OP_STATE;
}

static inline bool tz_op_cancelled(const tz_io_op *op)
{
    return op->engine.state & TZ_OP_CANCELLED;
}

static inline void tz_op_set_state(tz_io_op *op, uint32_t state)
{
    op->engine.state = state | (op->engine.state & ~(uint32_t)TZ_OP_STATE);
}

static inline void tz_op_enqueue(tz_io *io, tz_io_op *op)
{
    tz_op_set_state(op, TZ_OP_QUEUED);
    tz_op_list_push(&io->queue, op);
}

/* The op is over: its callback comes with the next delivery. */
static inline void tz_op_ready(tz_io *io, tz_io_op *op, int64_t result)
{
    op->engine.result = result;
    tz_op_set_state(op, TZ_OP_READY);
    tz_op_list_push(&io->ready, op);
}

static inline void tz_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline uint64_t tz_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- io.c: the mailbox ---- */

int tz_io_init(tz_io *io, const tz_engine *engine, const tz_io_config *config);
void tz_io_fini(tz_io *io);

/* From a worker: the op is over, op->engine.result is set. */
void tz_inbox_complete(tz_inbox *inbox, tz_io_op *op);
bool tz_inbox_any(tz_inbox *inbox);

static inline bool tz_io_anything_due(tz_io *io)
{
    return io->ready.head || tz_inbox_any(&io->inbox);
}

/* The owner announces its sleep; false (and no sleep) when something is there already. */
bool tz_inbox_sleep(tz_inbox *inbox);
void tz_inbox_awake(tz_inbox *inbox);

/* ---- polling.c ---- */

void tz_polling_init(tz_polling *polling, uint32_t poll_us);

/* A turn that may sleep: spins before it where that has been worth it. */
int tz_polling_turn(tz_io *io, int64_t timeout_ns);

/* ---- the engines ---- */

int tz_threads_create(tz_io **out, const tz_io_config *config);
#if TZ_HAVE_URING
int tz_uring_create(tz_io **out, const tz_io_config *config, const char **step);
#endif

#endif
