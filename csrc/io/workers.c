/* SPDX-License-Identifier: Apache-2.0
 *
 * See workers.h. An op in the pool:
 *
 *   submit ─▶ in the queue, untaken ─▶ taken by a worker: calls, judges ─▶ inbox (the owner is woken)
 *                     └─ cancel ─▶ the caller's again        (cancel: too late, the result decides)
 */
#include "workers.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "transfer.h"

struct tz_workers {
    tz_inbox *inbox;
    uint32_t limit;
    pthread_mutex_t lock;
    /* Under the lock. */
    pthread_cond_t work;
    tz_op_list queue;
    uint32_t queued, idle;
    bool stop;
    /* The owner's. */
    uint32_t started;
    pthread_t threads[];
};

static void *work(void *argument)
{
    tz_workers *workers = argument;
    tz_io_op *op;

    pthread_mutex_lock(&workers->lock);
    for (;;) {
        while (!(op = tz_op_list_pop(&workers->queue)) && !workers->stop) {
            workers->idle++;
            pthread_cond_wait(&workers->work, &workers->lock);
            workers->idle--;
        }
        if (!op)
            break;
        workers->queued--;
        op->engine.word[TZ_WORD_UNTAKEN] = false;
        pthread_mutex_unlock(&workers->lock);
        op->engine.result = tz_transfer_blocking(op);
        tz_inbox_complete(workers->inbox, op);
        pthread_mutex_lock(&workers->lock);
    }
    pthread_mutex_unlock(&workers->lock);
    return NULL;
}

int tz_workers_create(tz_workers **out, tz_inbox *inbox, uint32_t limit)
{
    tz_workers *workers = calloc(1, sizeof(*workers) + limit * sizeof(pthread_t));

    if (!workers)
        return -ENOMEM;
    workers->inbox = inbox;
    workers->limit = limit;
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
    assert(!workers->queue.head);
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
    bool enough;

    tz_op_set_state(op, TZ_OP_WORKER);
    pthread_mutex_lock(&workers->lock);
    op->engine.word[TZ_WORD_UNTAKEN] = true;
    tz_op_list_push(&workers->queue, op);
    enough = ++workers->queued <= workers->idle;
    if (workers->idle)
        pthread_cond_signal(&workers->work);
    pthread_mutex_unlock(&workers->lock);
    if (enough || workers->started == workers->limit || start_one(workers) || workers->started)
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
        tz_op_list_remove(&workers->queue, op);
        workers->queued--;
        op->engine.word[TZ_WORD_UNTAKEN] = false;
    }
    pthread_mutex_unlock(&workers->lock);
    return untaken;
}
