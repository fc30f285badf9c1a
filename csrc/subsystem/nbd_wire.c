/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_wire.h"

#include <errno.h>

#include "tz/nbd.h"

bool tz_nbd_decode(tz_nbd_wire *out, const uint8_t bytes[NBD_REQUEST_BYTES])
{
    if (tz_nbd_get32(bytes) != NBD_REQUEST_MAGIC)
        return false;
    out->flags = tz_nbd_get16(bytes + 4);
    out->command = tz_nbd_get16(bytes + 6);
    out->cookie = tz_nbd_get64(bytes + 8);
    out->offset = tz_nbd_get64(bytes + 16);
    out->length = tz_nbd_get32(bytes + 24);
    return true;
}

static tz_nbd_verdict refuse(uint32_t error, const char *message)
{
    return (tz_nbd_verdict){.error = error, .message = message};
}

/* The flags a command may carry. FUA is to be accepted on all of them, the protocol says. */
static uint16_t flags_of(uint16_t command, const tz_nbd_terms *terms)
{
    switch (command) {
    case NBD_CMD_READ:
        return NBD_CMD_FLAG_FUA | (terms->structured ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
        return NBD_CMD_FLAG_FUA;
    }
}

static bool is_update(uint16_t command)
{
    return command == NBD_CMD_WRITE || command == NBD_CMD_TRIM || command == NBD_CMD_WRITE_ZEROES;
}

static tz_nbd_verdict judge_range(const tz_nbd_wire *wire, const tz_nbd_terms *terms)
{
    if (wire->offset <= terms->size && wire->length <= terms->size - wire->offset)
        return refuse(NBD_OK, NULL);
    if (wire->command == NBD_CMD_WRITE || wire->command == NBD_CMD_WRITE_ZEROES)
        return refuse(NBD_ENOSPC, "the range ends beyond the end of the volume");
    return refuse(NBD_EINVAL, "the range ends beyond the end of the volume");
}

tz_nbd_verdict tz_nbd_judge(const tz_nbd_wire *wire, const tz_nbd_terms *terms)
{
    if (wire->command > NBD_CMD_BLOCK_STATUS)
        return refuse(NBD_EINVAL, "unknown command");
    if (wire->flags & ~flags_of(wire->command, terms))
        return refuse(NBD_EINVAL, "a flag that this command does not have");
    if (terms->read_only && is_update(wire->command))
        return refuse(NBD_EPERM, "the volume is read-only");
    if (wire->command == NBD_CMD_FLUSH) {
        if (wire->offset || wire->length)
            return refuse(NBD_EINVAL, "a flush has neither offset nor length");
        return refuse(NBD_OK, NULL);
    }
    if (wire->command == NBD_CMD_BLOCK_STATUS && (!terms->block_status || !wire->length))
        return refuse(NBD_EINVAL, terms->block_status ? "an empty range" : "block status was not negotiated");
    if (wire->command == NBD_CMD_READ && wire->length > TZ_NBD_MAX_PAYLOAD)
        return refuse(wire->flags & NBD_CMD_FLAG_DF ? NBD_EOVERFLOW : NBD_EINVAL, "longer than 32 MiB");
    return judge_range(wire, terms);
}

tz_nbd_verdict tz_nbd_explain(const tz_nbd_wire *wire, int64_t result)
{
    if (result >= 0)
        return refuse(NBD_OK, NULL);
    switch (-result) {
    case EPERM:
    case EACCES:
    case EROFS:
        return refuse(NBD_EPERM, "the volume does not permit it");
    case ENOMEM:
        return refuse(NBD_ENOMEM, "out of memory");
    case EINVAL:
        return refuse(NBD_EINVAL, "the volume does not take the request");
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return refuse(NBD_ENOSPC, "no space left under the volume");
    case EOPNOTSUPP:
        /* Only a fast zero may fail so; from anything else a client would not expect it. */
        if (wire->command == NBD_CMD_WRITE_ZEROES && wire->flags & NBD_CMD_FLAG_FAST_ZERO)
            return refuse(NBD_ENOTSUP, "zeroing would not be faster than writing");
        return refuse(NBD_EINVAL, "not supported by the volume");
    case ESHUTDOWN:
        return refuse(NBD_ESHUTDOWN, "the server is shutting down");
    default:
        return refuse(NBD_EIO, "input/output error of the volume");
    }
}

size_t tz_nbd_encode_simple(uint8_t *out, uint64_t cookie, uint32_t error)
{
    tz_nbd_put32(out, NBD_SIMPLE_REPLY_MAGIC);
    tz_nbd_put32(out + 4, error);
    tz_nbd_put64(out + 8, cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

size_t tz_nbd_encode_chunk(uint8_t *out, uint64_t cookie, uint16_t type, uint32_t length)
{
    tz_nbd_put32(out, NBD_STRUCTURED_REPLY_MAGIC);
    tz_nbd_put16(out + 4, NBD_REPLY_FLAG_DONE);
    tz_nbd_put16(out + 6, type);
    tz_nbd_put64(out + 8, cookie);
    tz_nbd_put32(out + 16, length);
    return NBD_CHUNK_BYTES;
}
