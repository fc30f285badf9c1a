/* SPDX-License-Identifier: Apache-2.0
 *
 * A first-in, first-out queue of requests, linked through the requests themselves.
 */
#ifndef TZ_QUEUE_H
#define TZ_QUEUE_H

#include "tz/volume.h"

typedef struct tz_queue {
    tz_request *first, *last;
    uint64_t count;
} tz_queue;

static inline void tz_queue_push(tz_queue *queue, tz_request *request)
{
    request->volume.next = NULL;
    request->volume.prev = queue->last;
    if (queue->last)
        queue->last->volume.next = request;
    else
        queue->first = request;
    queue->last = request;
    queue->count++;
}

static inline void tz_queue_remove(tz_queue *queue, tz_request *request)
{
    tz_request *next = request->volume.next, *prev = request->volume.prev;

    *(prev ? &prev->volume.next : &queue->first) = next;
    *(next ? &next->volume.prev : &queue->last) = prev;
    request->volume.next = request->volume.prev = NULL;
    queue->count--;
}

#endif
