/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_connection.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define REQUESTS_DEFAULT 128
#define BYTES_DEFAULT    (64 * TZ_MIB)
#define SILENT_DEFAULT   105000 /* ms; with the time between two looks two minutes, as long as keepalive takes */

/* A guest's disk driver resets its device after 30 s without an answer. */
#define PATIENCE_DEFAULT UINT64_C(20000000000) /* ns */

/* Many small requests with their payloads fit into one receive. */
#define RECEIVE_BUFFER ((size_t)128 * TZ_KIB)

/* The rest of a payload from this size on is received where it belongs: copying it would cost more than a system call.
 * After such a write the next receive asks for little, so that a run of large writes is hardly copied at all. */
#define DIRECT_MIN   ((size_t)16 * TZ_KIB)
#define WINDOW_SMALL ((size_t)4 * TZ_KIB)

static void step(tz_deferred *deferred);
static void received(tz_io_op *op, int64_t result);

static int allocate(tz_nbd_connection *connection)
{
    uint32_t iovs = (uint32_t)tz_min_u64(2 * (uint64_t)connection->max_requests, TZ_IO_IOV_MAX);

    connection->buffer = aligned_alloc(4096, RECEIVE_BUFFER);
    connection->requests = calloc(connection->max_requests, sizeof(*connection->requests));
    connection->send_iov = calloc(iovs, sizeof(*connection->send_iov));
    if (!connection->buffer || !connection->requests || !connection->send_iov)
        return -ENOMEM;
    for (uint32_t i = 0; i < connection->max_requests; i++) {
        connection->requests[i].connection = connection;
        connection->requests[i].next = connection->free;
        connection->free = &connection->requests[i];
    }
    return 0;
}

int tz_nbd_connection_create(tz_nbd_connection **out, tz_reactor *reactor, tz_volume *volume, int fd,
                             const tz_nbd_config *config)
{
    const tz_file *file = tz_volume_file(volume);
    tz_nbd_connection *connection = calloc(1, sizeof(*connection));

    if (!connection)
        return -ENOMEM;
    connection->reactor = reactor;
    connection->volume = volume;
    connection->fd = fd;
    connection->terms = (tz_nbd_terms){
        .size = file->size,
        .structured = config->flags & TZ_NBD_STRUCTURED,
        .block_status = config->flags & TZ_NBD_BASE_ALLOCATION,
        .read_only = (config->flags & TZ_NBD_READ_ONLY) || !file->writable,
    };
    connection->context_id = config->context_id;
    connection->max_requests = config->max_requests ? config->max_requests : REQUESTS_DEFAULT;
    connection->max_bytes = config->max_bytes ? config->max_bytes : BYTES_DEFAULT;
    connection->patience_ns = config->patience_ns ? config->patience_ns : PATIENCE_DEFAULT;
    connection->silent_ms = config->silent_ms ? config->silent_ms : SILENT_DEFAULT;
    connection->step.run = step;
    connection->window = RECEIVE_BUFFER;
    connection->ready.last = &connection->ready.first;
    if (allocate(connection) < 0) {
        tz_nbd_connection_free(connection);
        return -ENOMEM;
    }
    *out = connection;
    return 0;
}

void tz_nbd_connection_free(tz_nbd_connection *connection)
{
    free(connection->send_iov);
    free(connection->requests);
    free(connection->buffer);
    free(connection);
}

void tz_nbd_connection_stop(tz_nbd_connection *connection, bool broken)
{
    if (!connection->stopping || (broken && !connection->broken)) {
        connection->stopping = true;
        connection->broken |= broken;
        /* Ends a receive or send in flight, whichever engine waits for it. */
        shutdown(connection->fd, connection->broken ? SHUT_RDWR : SHUT_RD);
    }
    tz_nbd_connection_schedule(connection);
}

/* ---- receiving ---- */

static size_t unparsed(const tz_nbd_connection *connection)
{
    return connection->end - connection->begin;
}

static void receive_into(tz_nbd_connection *connection, void *to, size_t length)
{
    connection->receive_iov = (struct iovec){.iov_base = to, .iov_len = length};
    connection->receive = (tz_io_op){
        .opcode = TZ_IO_RECV,
        .fd = connection->fd,
        .iov = &connection->receive_iov,
        .iovs = 1,
        .done = received,
        .user = connection,
    };
    connection->receiving = true;
    tz_io_submit(tz_reactor_io(connection->reactor), &connection->receive);
}

static void receive_more(tz_nbd_connection *connection)
{
    if (connection->filling && connection->filling->wire.length - connection->filled >= DIRECT_MIN) {
        connection->direct = true;
        connection->window = WINDOW_SMALL;
        receive_into(connection, (uint8_t *)connection->filling->payload + connection->filled,
                     connection->filling->wire.length - connection->filled);
        return;
    }
    /* What is left is less than a header: moving it to the front is cheap. */
    assert(unparsed(connection) < NBD_REQUEST_BYTES);
    memmove(connection->buffer, connection->buffer + connection->begin, unparsed(connection));
    connection->end -= connection->begin;
    connection->begin = 0;
    connection->direct = false;
    receive_into(connection, connection->buffer + connection->end,
                 tz_min_u64(connection->window, RECEIVE_BUFFER - connection->end));
}

static void received(tz_io_op *op, int64_t result)
{
    tz_nbd_connection *connection = op->user;

    connection->receiving = false;
    if (result <= 0)
        connection->stopping = true; /* the peer has ended, or only stopped writing: replies still go out */
    else if (connection->direct)
        connection->filled += (uint32_t)result;
    else
        connection->end += (size_t)result;
    tz_nbd_connection_schedule(connection);
}

/* ---- parsing ---- */

static void drop(tz_nbd_connection *connection)
{
    size_t count = tz_min_u64(connection->skip, unparsed(connection));

    connection->begin += count;
    connection->skip -= count;
}

static void fill(tz_nbd_connection *connection)
{
    tz_nbd_request *request = connection->filling;
    size_t count = tz_min_u64(request->wire.length - connection->filled, unparsed(connection));

    memcpy((uint8_t *)request->payload + connection->filled, connection->buffer + connection->begin, count);
    connection->begin += count;
    connection->filled += (uint32_t)count;
    if (connection->filled == request->wire.length) {
        connection->filling = NULL;
        tz_nbd_request_filled(request);
    }
}

static void violated(tz_nbd_connection *connection)
{
    atomic_fetch_add(&connection->export->protocol_errors, 1);
    tz_nbd_connection_stop(connection, false);
}

/* Takes up the request at the front of the buffer. False: it has to wait, until others have been replied to or there is
 * memory. */
static bool take_up(tz_nbd_connection *connection)
{
    tz_nbd_wire wire;
    tz_nbd_verdict verdict;

    if (!tz_nbd_decode(&wire, connection->buffer + connection->begin) ||
        (wire.command == NBD_CMD_WRITE && wire.length > TZ_NBD_MAX_PAYLOAD)) {
        violated(connection);
        return true;
    }
    verdict = tz_nbd_judge(&wire, &connection->terms);
    if (!tz_nbd_request_fits(connection, &wire, verdict))
        return false;
    if (wire.command == NBD_CMD_DISC)
        tz_nbd_connection_stop(connection, false);
    else if (!tz_nbd_request_begin(connection, &wire, verdict))
        return false;
    connection->begin += NBD_REQUEST_BYTES;
    atomic_fetch_add_explicit(&connection->export->requests, 1, memory_order_relaxed);
    if (wire.command != NBD_CMD_WRITE || wire.length < DIRECT_MIN)
        connection->window = RECEIVE_BUFFER;
    return true;
}

static void parse(tz_nbd_connection *connection)
{
    while (!connection->stopping) {
        if (connection->skip)
            drop(connection);
        else if (connection->filling)
            fill(connection);
        else if (unparsed(connection) >= NBD_REQUEST_BYTES && !take_up(connection))
            return; /* releasing a request schedules us again, and so does the clock when memory is short */

        if (connection->skip || connection->filling ? unparsed(connection) == 0
                                                    : unparsed(connection) < NBD_REQUEST_BYTES)
            break;
    }
    if (!connection->stopping)
        receive_more(connection);
}

/* ---- the step ---- */

static void finish(tz_nbd_connection *connection)
{
    tz_nbd_hub *hub = connection->reactor->nbd;
    int fd = connection->fd;

    /* Closed first: who waits for the connection to have gone expects the peer to know. */
    close(fd);
    tz_nbd_hub_leave(hub, connection);
    tz_nbd_connection_free(connection);
}

static void step(tz_deferred *deferred)
{
    tz_nbd_connection *connection = tz_container_of(deferred, tz_nbd_connection, step);

    if (!connection->receiving && !connection->stopping)
        parse(connection);
    if (connection->stopping && !connection->receiving && connection->filling) {
        tz_nbd_request_release(connection->filling);
        connection->filling = NULL;
    }
    tz_nbd_reply_flush(connection);
    if (connection->stopping && !connection->receiving && !connection->sending && connection->in_use == 0 &&
        !connection->starving && !connection->step.queued && tz_nbd_peer_forget(connection))
        finish(connection);
}
