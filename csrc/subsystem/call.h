/* SPDX-License-Identifier: Apache-2.0
 *
 * A call to a volume's thread: posted, answered once, waited for. It may be answered long after it ran.
 *
 * Memory   the waiter's, until tz_call_wait has returned.
 * Threads  wait: any thread but the engine's own. answer: any thread; it touches the call last of all.
 */
#ifndef TZ_CALL_H
#define TZ_CALL_H

#include <pthread.h>

#include "tz/io.h"

typedef struct tz_call {
    tz_io_message message;
    pthread_mutex_t mutex;
    pthread_cond_t answered;
    bool done;
} tz_call;

static inline void tz_call_init(tz_call *call, void (*run)(tz_io_message *message))
{
    call->message = (tz_io_message){.run = run};
    pthread_mutex_init(&call->mutex, NULL);
    pthread_cond_init(&call->answered, NULL);
    call->done = false;
}

static inline void tz_call_answer(tz_call *call)
{
    pthread_mutex_lock(&call->mutex);
    call->done = true;
    pthread_cond_signal(&call->answered);
    pthread_mutex_unlock(&call->mutex);
}

static inline void tz_call_wait(tz_call *call)
{
    pthread_mutex_lock(&call->mutex);
    while (!call->done)
        pthread_cond_wait(&call->answered, &call->mutex);
    pthread_mutex_unlock(&call->mutex);
    pthread_cond_destroy(&call->answered);
    pthread_mutex_destroy(&call->mutex);
}

#endif
