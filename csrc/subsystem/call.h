/* SPDX-License-Identifier: Apache-2.0
 *
 * A call to a volume's thread: posted, answered once, waited for. It may be answered long after it ran.
 *
 * Memory   the waiter's, until tz_call_wait has returned.
 * Threads  wait: any thread but the engine's own. answer: any thread; it touches the call last of all.
 */
#ifndef TZ_CALL_H
#define TZ_CALL_H

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "tz/io.h"

typedef struct tz_call {
    tz_io_message message;
    pthread_mutex_t mutex;
    pthread_cond_t answered;
    bool done;
} tz_call;

static inline void tz_call_init(tz_call *call, void (*run)(tz_io_message *message))
{
    pthread_condattr_t monotonic;

    call->message = (tz_io_message){.run = run};
    pthread_mutex_init(&call->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&call->answered, &monotonic);
    pthread_condattr_destroy(&monotonic);
    call->done = false;
}

static inline void tz_call_answer(tz_call *call)
{
    pthread_mutex_lock(&call->mutex);
    call->done = true;
    pthread_cond_signal(&call->answered);
    pthread_mutex_unlock(&call->mutex);
}

static inline void tz_call_fini(tz_call *call)
{
    pthread_cond_destroy(&call->answered);
    pthread_mutex_destroy(&call->mutex);
}

static inline void tz_call_wait(tz_call *call)
{
    pthread_mutex_lock(&call->mutex);
    while (!call->done)
        pthread_cond_wait(&call->answered, &call->mutex);
    pthread_mutex_unlock(&call->mutex);
    tz_call_fini(call);
}

/* Until an instant of CLOCK_MONOTONIC. False: the call is still out; who takes it back owes it tz_call_fini. */
static inline bool tz_call_wait_until(tz_call *call, uint64_t until_ns)
{
    const struct timespec until = {(time_t)(until_ns / 1000000000), (long)(until_ns % 1000000000)};
    int rc = 0;
    bool done;

    pthread_mutex_lock(&call->mutex);
    while (!call->done && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&call->answered, &call->mutex, &until);
    done = call->done;
    pthread_mutex_unlock(&call->mutex);
    if (done)
        tz_call_fini(call);
    return done;
}

#endif
