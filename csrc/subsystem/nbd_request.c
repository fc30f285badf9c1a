/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"
#include "nbd_connection.h"

#include <errno.h>

/* Extents a block status reply describes at most: what one page of tz_volume_extent holds. A client goes on from there.
 */
#define STATUS_EXTENTS ((uint32_t)(TZ_NBD_PAYLOAD_MIN / sizeof(tz_volume_extent)))

#define MEMORY_LOOK_NS UINT64_C(10000000)

static void done(tz_request *volume, int64_t result);

static uint32_t payload_needed(const tz_nbd_wire *wire)
{
    switch (wire->command) {
    case NBD_CMD_READ:
    case NBD_CMD_WRITE:
        return wire->length;
    case NBD_CMD_BLOCK_STATUS:
        return TZ_NBD_PAYLOAD_MIN;
    default:
        return 0;
    }
}

bool tz_nbd_request_fits(const tz_nbd_connection *connection, const tz_nbd_wire *wire, tz_nbd_verdict verdict)
{
    uint32_t payload = verdict.error ? 0 : payload_needed(wire);

    if (!connection->free)
        return false;
    /* A request alone may be larger than the limit: else it would never be served. */
    return !payload || !connection->bytes || connection->bytes + tz_nbd_payload_bytes(payload) <= connection->max_bytes;
}

/* ---- memory that is not to be had ----
 *
 * The client has done nothing wrong, and its device neither, so its request waits in the socket. For how long? What it
 * needs may come back from anybody: its own connection, another of this reactor's or of another reactor's, a session, a
 * program beside us. Most of these could not say so, and the ones that could may never do it (a client that does not read
 * its replies keeps their payloads). So the clock looks again, whoever it was; and after `patience_ns` the request is
 * refused after all, as are the ones close behind it while there still is none, since a client may wait for this answer before
 * it does what would free some.
 */

static void looked_again(tz_io_op *op, int64_t result)
{
    tz_nbd_connection *connection = op->user;

    connection->starving = false;
    if (result < 0 && result != -ECANCELED) /* not even for the clock: it is no use to go on */
        connection->starved_since_ns = 1;
    tz_nbd_connection_schedule(connection);
}

static bool starve(tz_nbd_connection *connection)
{
    uint64_t now = tz_now_ns();

    if (!connection->starved_since_ns ||
        (connection->refused_ns && now - connection->refused_ns > connection->patience_ns)) {
        connection->starved_since_ns = now;
        connection->refused_ns = 0;
    }
    if (now - connection->starved_since_ns >= connection->patience_ns) {
        connection->refused_ns = now;
        return false;
    }
    if (connection->starving) /* something else woke us */
        return true;
    connection->starving = true;
    connection->starve = (tz_io_op){
        .opcode = TZ_IO_TIMEOUT,
        .length = MEMORY_LOOK_NS,
        .done = looked_again,
        .user = connection,
    };
    tz_io_submit(tz_reactor_io(connection->reactor), &connection->starve);
    return true;
}

static void *take_payload(tz_nbd_connection *connection, uint32_t length)
{
    void *payload = tz_nbd_payload_take(&connection->reactor->nbd->payloads, length);

    if (payload) {
        connection->starved_since_ns = 0;
        connection->bytes += tz_nbd_payload_bytes(length);
    }
    return payload;
}

static void give_payload(tz_nbd_request *request)
{
    tz_nbd_connection *connection = request->connection;

    if (!request->payload)
        return;
    connection->bytes -= tz_nbd_payload_bytes(request->payload_length);
    tz_nbd_payload_give(&connection->reactor->nbd->payloads, request->payload, request->payload_length);
    request->payload = NULL;
}

static tz_nbd_request *take(tz_nbd_connection *connection, const tz_nbd_wire *wire, void *payload, uint32_t length)
{
    tz_nbd_request *request = connection->free;

    connection->free = request->next;
    connection->in_use++;
    request->wire = *wire;
    request->payload = payload;
    request->payload_length = length;
    return request;
}

void tz_nbd_request_release(tz_nbd_request *request)
{
    tz_nbd_connection *connection = request->connection;

    give_payload(request);
    request->next = connection->free;
    connection->free = request;
    connection->in_use--;
    tz_nbd_connection_schedule(connection);
}

/* By NBD command; flush has none of the rest. */
static const tz_request_kind kinds[] = {
    [NBD_CMD_READ] = TZ_REQUEST_READ,
    [NBD_CMD_WRITE] = TZ_REQUEST_WRITE,
    [NBD_CMD_FLUSH] = TZ_REQUEST_FLUSH,
    [NBD_CMD_TRIM] = TZ_REQUEST_TRIM,
    [NBD_CMD_CACHE] = TZ_REQUEST_CACHE,
    [NBD_CMD_WRITE_ZEROES] = TZ_REQUEST_ZERO,
    [NBD_CMD_BLOCK_STATUS] = TZ_REQUEST_BLOCK_STATUS,
};

static uint32_t volume_flags(const tz_nbd_wire *wire)
{
    uint32_t flags = 0;

    /* Clients set FUA on commands that write nothing, too: there it means nothing. */
    if (wire->flags & NBD_CMD_FLAG_FUA &&
        (wire->command == NBD_CMD_WRITE || wire->command == NBD_CMD_TRIM || wire->command == NBD_CMD_WRITE_ZEROES))
        flags |= TZ_REQUEST_FUA;
    if (wire->flags & NBD_CMD_FLAG_NO_HOLE)
        flags |= TZ_REQUEST_NO_HOLE;
    if (wire->flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= TZ_REQUEST_FAST_ZERO;
    if (wire->flags & NBD_CMD_FLAG_REQ_ONE)
        flags |= TZ_REQUEST_ONE_EXTENT;
    return flags;
}

static void submit(tz_nbd_request *request)
{
    const tz_nbd_wire *wire = &request->wire;
    tz_request *volume = &request->volume;

    volume->kind = kinds[wire->command];
    volume->flags = volume_flags(wire);
    volume->offset = wire->offset;
    volume->length = wire->length;
    volume->buffer = request->payload;
    volume->capacity = wire->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_EXTENTS;
    volume->done = done;
    volume->user = request;
    tz_volume_submit(request->connection->volume, volume);
}

static void refuse(tz_nbd_request *request, tz_nbd_verdict verdict)
{
    if (request->wire.command == NBD_CMD_WRITE)
        request->connection->skip = request->wire.length;
    tz_nbd_reply(request, verdict, 0);
}

bool tz_nbd_request_begin(tz_nbd_connection *connection, const tz_nbd_wire *wire, tz_nbd_verdict verdict)
{
    uint32_t length = verdict.error ? 0 : payload_needed(wire);
    void *payload = length ? take_payload(connection, length) : NULL;
    tz_nbd_request *request;

    if (length && !payload) {
        if (starve(connection))
            return false;
        verdict = (tz_nbd_verdict){.error = NBD_ENOMEM, .message = "out of memory"};
    }
    request = take(connection, wire, payload, length);
    if (verdict.error) {
        refuse(request, verdict);
    } else if (wire->length == 0 && wire->command != NBD_CMD_FLUSH) {
        tz_nbd_reply(request, verdict, 0);
    } else if (wire->command == NBD_CMD_WRITE) {
        connection->filling = request;
        connection->filled = 0;
    } else {
        submit(request);
    }
    return true;
}

void tz_nbd_request_filled(tz_nbd_request *request)
{
    submit(request);
}

static void done(tz_request *volume, int64_t result)
{
    tz_nbd_request *request = volume->user;
    tz_nbd_verdict verdict = tz_nbd_explain(&request->wire, result);

    /* Only a reply with data still needs the payload; the next write may have it while this reply waits. */
    if (verdict.error || request->wire.command == NBD_CMD_WRITE)
        give_payload(request);
    tz_nbd_reply(request, verdict, volume->capacity);
}
