/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a reactor, for the modules that run on its thread.
 *
 *   round:  tz_io_run (callbacks note what changed) ─▶ deferred work (acts once on all of it) ─▶ next round
 *
 * Deferring is what makes batches: all requests of one receive are parsed together, all replies that became ready
 * in a round leave in one send.
 *
 * Errors   none.   Memory   a tz_deferred is its user's; it may free itself inside `run`.   Threads  the reactor's own.
 */
#ifndef TZ_SUBSYSTEM_REACTOR_PRIVATE_H
#define TZ_SUBSYSTEM_REACTOR_PRIVATE_H

#include <pthread.h>

#include "tz/reactor.h"

typedef struct tz_deferred tz_deferred;
typedef struct tz_nbd_hub tz_nbd_hub;

struct tz_deferred {
    void (*run)(tz_deferred *deferred);
    tz_deferred *next;
    bool queued;
};

struct tz_reactor {
    /* Constant once created. */
    tz_io *io;
    tz_nbd_hub *nbd;
    pthread_t thread;

    /* The reactor's thread. */
    tz_deferred *first, **last;
    bool stopping;
};

/* Runs deferred->run once after the callbacks of this round; queueing it twice is queueing it once. */
void tz_reactor_defer(tz_reactor *reactor, tz_deferred *deferred);

#endif
