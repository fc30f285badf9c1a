/* SPDX-License-Identifier: Apache-2.0
 *
 * See workers.h. An op in the pool:
 *
 *   submit ─▶ in the queue, untaken ─▶ taken by a worker: calls, judges ─▶ inbox (the owner is woken)
 *                     └─ cancel ─▶ the caller's again        (cancel: too late, the result decides)
 *
 * There is a queue for each file (descriptors that share one share its limit): free workers go round the queues, and pass
 * over those whose limit of workers is busy.
 */
#include "workers.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "transfer.h"

#define QUEUES        64
#define WORKERS_FILES 8

typedef struct queue {
    tz_op_list ops;
    uint32_t queued, running;
} queue;

struct tz_workers {
    tz_inbox *inbox;
    uint32_t limit; /* a queue */
    uint32_t most;
    pthread_mutex_t lock;
    /* Under the lock. */
    pthread_cond_t work;
    queue queues[QUEUES];
    uint32_t turn;  /* queue to be looked at first */
    uint32_t idle;  /* waiting, and not called */
    uint32_t calls; /* of idle workers that have not heard it yet */
    bool stop;
    /* The owner's. */
    uint32_t started;
    pthread_t threads[];
};

static queue *queue_of(tz_workers *workers, const tz_io_op *op)
{
    return &workers->queues[(unsigned)op->fd % QUEUES];
}

static bool may_start(const tz_workers *workers, const queue *q)
{
    return q->ops.head && q->running < workers->limit;
}

/* Under the lock: an op whose queue may have one more worker, or NULL. */
static tz_io_op *take(tz_workers *workers)
{
    for (uint32_t i = 0; i < QUEUES; i++) {
        queue *q = &workers->queues[(workers->turn + i) % QUEUES];
        tz_io_op *op;

        if (!may_start(workers, q))
            continue;
        op = tz_op_list_pop(&q->ops);
        op->engine.word[TZ_WORD_UNTAKEN] = false;
        q->queued--;
        q->running++;
        workers->turn = (workers->turn + i + 1) % QUEUES;
        return op;
    }
    return NULL;
}

static void *work(void *argument)
{
    tz_workers *workers = argument;
    tz_io_op *op;

    pthread_mutex_lock(&workers->lock);
    for (;;) {
        while (!(op = take(workers)) && !workers->stop) {
            workers->idle++;
            while (!workers->calls && !workers->stop)
                pthread_cond_wait(&workers->work, &workers->lock);
            workers->calls -= workers->calls > 0;
        }
        if (!op)
            break;
        queue *q = queue_of(workers, op);

        pthread_mutex_unlock(&workers->lock);
        op->engine.result = tz_transfer_blocking(op);
        tz_inbox_complete(workers->inbox, op);
        pthread_mutex_lock(&workers->lock);
        q->running--;
    }
    pthread_mutex_unlock(&workers->lock);
    return NULL;
}

int tz_workers_create(tz_workers **out, tz_inbox *inbox, uint32_t limit)
{
    tz_workers *workers = calloc(1, sizeof(*workers) + limit * WORKERS_FILES * sizeof(pthread_t));

    if (!workers)
        return -ENOMEM;
    workers->inbox = inbox;
    workers->limit = limit;
    workers->most = limit * WORKERS_FILES;
    pthread_mutex_init(&workers->lock, NULL);
    pthread_cond_init(&workers->work, NULL);
    *out = workers;
    return 0;
}

void tz_workers_destroy(tz_workers *workers)
{
    if (!workers)
        return;
    pthread_mutex_lock(&workers->lock);
    for (uint32_t i = 0; i < QUEUES; i++)
        assert(!workers->queues[i].ops.head);
    workers->stop = true;
    pthread_cond_broadcast(&workers->work);
    pthread_mutex_unlock(&workers->lock);
    for (uint32_t i = 0; i < workers->started; i++)
        pthread_join(workers->threads[i], NULL);
    pthread_cond_destroy(&workers->work);
    pthread_mutex_destroy(&workers->lock);
    free(workers);
}

/* Signals are for the application's threads: a worker blocks them all. */
static bool start_one(tz_workers *workers)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&workers->threads[workers->started], NULL, work, workers);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        workers->started++;
    return rc == 0;
}

void tz_workers_submit(tz_workers *workers, tz_io_op *op)
{
    queue *q = queue_of(workers, op);
    bool served;

    tz_op_set_state(op, TZ_OP_WORKER);
    pthread_mutex_lock(&workers->lock);
    op->engine.word[TZ_WORD_UNTAKEN] = true;
    tz_op_list_push(&q->ops, op);
    q->queued++;
    /* Every op that may start has a worker called or made for it: none waits for one that the op of another file keeps.
     */
    served = q->running + q->queued > workers->limit;
    if (!served && workers->idle) {
        workers->idle--;
        workers->calls++;
        pthread_cond_signal(&workers->work);
        served = true;
    }
    pthread_mutex_unlock(&workers->lock);
    if (served || workers->started == workers->most || start_one(workers) || workers->started)
        return;
    /* Not a single thread to be had: better late than never. */
    if (tz_workers_cancel(workers, op)) {
        op->engine.result = tz_transfer_blocking(op);
        tz_inbox_complete(workers->inbox, op);
    }
}

bool tz_workers_cancel(tz_workers *workers, tz_io_op *op)
{
    bool untaken;

    pthread_mutex_lock(&workers->lock);
    untaken = op->engine.word[TZ_WORD_UNTAKEN];
    if (untaken) {
        tz_op_list_remove(&queue_of(workers, op)->ops, op);
        queue_of(workers, op)->queued--;
        op->engine.word[TZ_WORD_UNTAKEN] = false;
    }
    pthread_mutex_unlock(&workers->lock);
    return untaken;
}
