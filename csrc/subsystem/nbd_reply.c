/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_connection.h"

/* One send carries replies up to about this many bytes, so that the buffers of the first are free again before the
 * last has left. */
#define SEND_BATCH ((size_t)256 * TZ_KIB)

static void sent(tz_io_op *op, int64_t result);

static void encode_error(tz_nbd_request *request, tz_nbd_verdict verdict)
{
    uint16_t length = (uint16_t)strlen(verdict.message);
    size_t at;

    if (!request->connection->terms.structured) {
        request->head_bytes = (uint32_t)tz_nbd_encode_simple(request->head, request->wire.cookie, verdict.error);
        return;
    }
    at = tz_nbd_encode_chunk(request->head, request->wire.cookie, NBD_REPLY_TYPE_ERROR, 6 + (uint32_t)length);
    tz_nbd_put32(request->head + at, verdict.error);
    tz_nbd_put16(request->head + at + 4, length);
    request->head_bytes = (uint32_t)at + 6;
    request->body = verdict.message;
    request->body_bytes = length;
}

static void encode_read(tz_nbd_request *request)
{
    const tz_nbd_wire *wire = &request->wire;
    size_t at;

    request->body = request->payload;
    request->body_bytes = wire->length;
    if (!request->connection->terms.structured) {
        request->head_bytes = (uint32_t)tz_nbd_encode_simple(request->head, wire->cookie, NBD_OK);
    } else if (wire->length == 0) { /* a data chunk may not be empty */
        request->head_bytes = (uint32_t)tz_nbd_encode_chunk(request->head, wire->cookie, NBD_REPLY_TYPE_NONE, 0);
    } else {
        at = tz_nbd_encode_chunk(request->head, wire->cookie, NBD_REPLY_TYPE_OFFSET_DATA, 8 + wire->length);
        tz_nbd_put64(request->head + at, wire->offset);
        request->head_bytes = (uint32_t)at + 8;
    }
}

/* The descriptors replace the extents where they lie: each is half as long as the extent it is made of. */
static void encode_status(tz_nbd_request *request, uint32_t extents)
{
    uint8_t *out = request->payload;
    size_t at;

    for (uint32_t i = 0; i < extents; i++) {
        tz_volume_extent extent;

        memcpy(&extent, (uint8_t *)request->payload + i * sizeof(extent), sizeof(extent));
        tz_nbd_put32(out, (uint32_t)tz_min_u64(extent.length, request->wire.length));
        tz_nbd_put32(out + 4, extent.flags);
        out += NBD_DESCRIPTOR_BYTES;
    }
    request->body = request->payload;
    request->body_bytes = extents * NBD_DESCRIPTOR_BYTES;
    at = tz_nbd_encode_chunk(request->head, request->wire.cookie, NBD_REPLY_TYPE_BLOCK_STATUS, 4 + request->body_bytes);
    tz_nbd_put32(request->head + at, request->connection->context_id);
    request->head_bytes = (uint32_t)at + 4;
}

void tz_nbd_reply(tz_nbd_request *request, tz_nbd_verdict verdict, uint32_t extents)
{
    tz_nbd_connection *connection = request->connection;

    request->body_bytes = 0;
    if (verdict.error)
        encode_error(request, verdict);
    else if (request->wire.command == NBD_CMD_READ)
        encode_read(request);
    else if (request->wire.command == NBD_CMD_BLOCK_STATUS)
        encode_status(request, extents);
    else /* without data a simple reply will do, whatever was negotiated */
        request->head_bytes = (uint32_t)tz_nbd_encode_simple(request->head, request->wire.cookie, NBD_OK);
    request->next = NULL;
    *connection->ready.last = request;
    connection->ready.last = &request->next;
    tz_nbd_connection_schedule(connection);
}

/* ---- sending ---- */

static void release_all(tz_nbd_request *first)
{
    while (first) {
        tz_nbd_request *next = first->next;

        tz_nbd_request_release(first);
        first = next;
    }
}

/* Moves replies from the ready queue to `sent`, up to a batch; returns how many vectors they take. */
static uint32_t gather(tz_nbd_connection *connection)
{
    uint32_t iovs = 0, room = (uint32_t)tz_min_u64(2 * (uint64_t)connection->max_requests, TZ_IO_IOV_MAX);
    size_t bytes = 0;
    tz_nbd_request **last = &connection->sent;

    while (connection->ready.first && iovs + 2 <= room && bytes < SEND_BATCH) {
        tz_nbd_request *request = connection->ready.first;

        connection->send_iov[iovs++] = (struct iovec){.iov_base = request->head, .iov_len = request->head_bytes};
        if (request->body_bytes)
            connection->send_iov[iovs++] =
                (struct iovec){.iov_base = (void *)request->body, .iov_len = request->body_bytes};
        bytes += request->head_bytes + request->body_bytes;
        connection->ready.first = request->next;
        *last = request;
        last = &request->next;
    }
    *last = NULL;
    if (!connection->ready.first)
        connection->ready.last = &connection->ready.first;
    return iovs;
}

void tz_nbd_reply_flush(tz_nbd_connection *connection)
{
    if (connection->sending || !connection->ready.first)
        return;
    if (connection->broken) {
        tz_nbd_request *dropped = connection->ready.first;

        connection->ready.first = NULL;
        connection->ready.last = &connection->ready.first;
        release_all(dropped);
        return;
    }
    connection->send = (tz_io_op){
        .opcode = TZ_IO_SEND,
        .fd = connection->fd,
        .iov = connection->send_iov,
        .iovs = gather(connection),
        .done = sent,
        .user = connection,
    };
    connection->sending = true;
    tz_io_submit(tz_reactor_io(connection->reactor), &connection->send);
}

static void sent(tz_io_op *op, int64_t result)
{
    tz_nbd_connection *connection = op->user;
    tz_nbd_request *first = connection->sent;

    connection->sending = false;
    connection->sent = NULL;
    if (result < 0)
        tz_nbd_connection_stop(connection, true);
    release_all(first);
    tz_nbd_connection_schedule(connection);
}
