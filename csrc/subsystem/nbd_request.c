/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_connection.h"

/* Extents a block status reply describes at most: what one page of tz_volume_extent holds. A client goes on from there.
 */
#define STATUS_EXTENTS ((uint32_t)(TZ_NBD_PAYLOAD_MIN / sizeof(tz_volume_extent)))

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

static bool take_payload(tz_nbd_request *request, uint32_t length)
{
    if (!length)
        return true;
    request->payload = tz_nbd_payload_take(&request->connection->reactor->nbd->payloads, length);
    if (!request->payload)
        return false;
    request->payload_length = length;
    request->connection->bytes += tz_nbd_payload_bytes(length);
    return true;
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

static tz_nbd_request *take(tz_nbd_connection *connection, const tz_nbd_wire *wire)
{
    tz_nbd_request *request = connection->free;

    connection->free = request->next;
    connection->in_use++;
    request->wire = *wire;
    request->payload = NULL;
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

void tz_nbd_request_begin(tz_nbd_connection *connection, const tz_nbd_wire *wire, tz_nbd_verdict verdict)
{
    tz_nbd_request *request = take(connection, wire);

    if (!verdict.error && !take_payload(request, payload_needed(wire)))
        verdict = (tz_nbd_verdict){.error = NBD_ENOMEM, .message = "out of memory"};
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
