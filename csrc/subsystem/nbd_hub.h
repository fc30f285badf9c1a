/* SPDX-License-Identifier: Apache-2.0
 *
 * What a reactor knows of NBD: the exports (volumes that have or had connections), their connections, the payload pool.
 *
 * Errors   create: -ENOMEM.
 * Memory   destroy asserts that every connection has gone.
 * Threads  `lock` covers the list of exports and, in each, the connections, their count and `closing`; counters are
 *          atomic; payloads belong to the reactor's thread.
 */
#ifndef TZ_SUBSYSTEM_NBD_HUB_H
#define TZ_SUBSYSTEM_NBD_HUB_H

#include <pthread.h>
#include <stdatomic.h>

#include "nbd_payload.h"
#include "reactor_private.h"
#include "tz/nbd.h"

typedef struct tz_nbd_connection tz_nbd_connection;

typedef struct tz_nbd_export {
    const tz_volume *volume;
    struct tz_nbd_export *next;
    tz_nbd_connection *connections;
    uint32_t count;
    bool closing; /* no new connections */

    _Atomic uint64_t requests, protocol_errors;
} tz_nbd_export;

struct tz_nbd_hub {
    pthread_mutex_t lock;
    pthread_cond_t gone; /* some connection has gone; CLOCK_MONOTONIC */
    tz_nbd_export *exports;
    tz_nbd_payloads payloads;
};

int tz_nbd_hub_create(tz_nbd_hub **out);
void tz_nbd_hub_destroy(tz_nbd_hub *hub);

/* The connection's last act before it frees itself; on the reactor's thread. */
void tz_nbd_hub_leave(tz_nbd_hub *hub, tz_nbd_connection *connection);

#endif
