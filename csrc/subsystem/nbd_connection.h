/* SPDX-License-Identifier: Apache-2.0
 *
 * One NBD connection in its transmission phase.
 *
 *   socket ─recv─▶ buffer ─parse─▶ request ─▶ tz_volume_submit ... done ─▶ reply queue ─send─▶ socket
 *             (nbd_connection.c)   (nbd_request.c)                         (nbd_reply.c)
 *
 * Every event only notes what it changed and schedules the connection's step; the step, once a round of the reactor,
 * parses all that has arrived, sends all that is ready, and frees the connection when nothing is left. So a callback
 * never runs inside another, and batches form by themselves.
 *
 *   reading ──▶ stopping: nothing more is read; requests in flight complete, their replies are sent
 *      │            │
 *      └────────────┴──▶ broken: the peer is gone; replies are dropped
 *
 * Two timers: one looks whether the peer is still there (nbd_peer.c), one whether memory that a request needs can be had
 * (nbd_request.c).
 *
 * Errors   create: -ENOMEM.
 * Memory   requests and receive buffer at creation; payloads from the reactor's pool, at most `max_bytes` of them
 *          (or one request's). Frees itself when it is stopping and nothing is in flight.
 * Threads  create: any; all else on the reactor's thread.
 */
#ifndef TZ_SUBSYSTEM_NBD_CONNECTION_H
#define TZ_SUBSYSTEM_NBD_CONNECTION_H

#include "nbd_hub.h"
#include "nbd_wire.h"

typedef struct tz_nbd_request {
    tz_request volume;
    tz_nbd_connection *connection;
    struct tz_nbd_request *next; /* of the list it is on: free, ready, being sent */
    tz_nbd_wire wire;
    void *payload;
    uint32_t payload_length; /* as taken from the pool */

    /* The reply, once the request is done. */
    uint8_t head[TZ_NBD_HEAD_BYTES];
    uint32_t head_bytes, body_bytes;
    const void *body;
} tz_nbd_request;

typedef struct tz_nbd_queue {
    tz_nbd_request *first, **last;
} tz_nbd_queue;

struct tz_nbd_connection {
    /* Constant while it lives. */
    tz_reactor *reactor;
    tz_volume *volume;
    tz_nbd_export *export;
    int fd;
    tz_nbd_terms terms;
    uint32_t context_id;
    uint32_t max_requests;
    uint64_t max_bytes;
    uint64_t patience_ns;
    uint32_t silent_ms;
    tz_nbd_connection *next, **previous; /* of its export, under the hub's lock */

    tz_deferred step;
    bool stopping, broken;

    /* Is the peer still there? */
    tz_io_op look;
    bool looking; /* `look` is submitted */

    /* Receiving. */
    tz_io_op receive;
    struct iovec receive_iov;
    bool receiving;
    bool direct;             /* the receive in flight goes straight into a payload */
    size_t window;           /* how much to ask for at once */
    size_t begin, end;       /* what of the buffer is not parsed yet */
    uint64_t skip;           /* payload of a refused write, still to be dropped */
    tz_nbd_request *filling; /* a write whose payload is still arriving */
    uint32_t filled;         /* bytes of it that are there */
    uint8_t *buffer;

    /* Requests. */
    tz_nbd_request *requests, *free;
    uint32_t in_use;
    uint64_t bytes; /* of payloads in use */

    /* Waiting for memory. */
    tz_io_op starve;
    bool starving;             /* `starve` is submitted */
    uint64_t starved_since_ns; /* 0: the last payload was to be had */
    uint64_t refused_ns;       /* when a request was last refused for want of it */

    /* Sending. */
    tz_io_op send;
    bool sending;
    tz_nbd_queue ready;
    tz_nbd_request *sent; /* those of the send in flight */
    struct iovec *send_iov;
};

int tz_nbd_connection_create(tz_nbd_connection **out, tz_reactor *reactor, tz_volume *volume, int fd,
                             const tz_nbd_config *config);
void tz_nbd_connection_free(tz_nbd_connection *connection); /* leaves the descriptor open */

/* Has something to do; its step runs after this round of callbacks. */
static inline void tz_nbd_connection_schedule(tz_nbd_connection *connection)
{
    tz_reactor_defer(connection->reactor, &connection->step);
}

/* Read nothing more; `broken`: send nothing more either. */
void tz_nbd_connection_stop(tz_nbd_connection *connection, bool broken);

/* ---- nbd_request.c ---- */

/* Is there room for what this request needs now? */
bool tz_nbd_request_fits(const tz_nbd_connection *connection, const tz_nbd_wire *wire, tz_nbd_verdict verdict);

/* Takes a request up: carries it out, or refuses it; a write is carried out once its payload is there. After _fits.
 * False: there is no memory for it now; the connection's step runs again in a while. */
bool tz_nbd_request_begin(tz_nbd_connection *connection, const tz_nbd_wire *wire, tz_nbd_verdict verdict);
void tz_nbd_request_filled(tz_nbd_request *request);
void tz_nbd_request_release(tz_nbd_request *request);

/* ---- nbd_peer.c ---- */

/* From now on a peer that has vanished breaks the connection. */
void tz_nbd_peer_watch(tz_nbd_connection *connection);

/* Last of all. False: not yet; the step runs again. */
bool tz_nbd_peer_forget(tz_nbd_connection *connection);

/* ---- nbd_reply.c ---- */

/* Puts the reply to a finished request into the queue. `extents`: of a successful block status. */
void tz_nbd_reply(tz_nbd_request *request, tz_nbd_verdict verdict, uint32_t extents);

/* Sends what is ready, unless a send is in flight; drops it on a broken connection. */
void tz_nbd_reply_flush(tz_nbd_connection *connection);

#endif
