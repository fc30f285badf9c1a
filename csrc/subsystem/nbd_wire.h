/* SPDX-License-Identifier: Apache-2.0
 *
 * The bytes of the NBD transmission phase: decoding a request, judging it, encoding replies. Pure.
 *
 * Names and numbers are those of the protocol text (NetworkBlockDevice/nbd, doc/proto.md). All fields are
 * big-endian and may lie at any address.
 *
 * Errors   NBD error numbers, as they go over the wire.   Memory   none.   Threads  any.
 */
#ifndef TZ_SUBSYSTEM_NBD_WIRE_H
#define TZ_SUBSYSTEM_NBD_WIRE_H

#include <endian.h>
#include <string.h>

#include "tz/common.h"

#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)

#define NBD_REQUEST_BYTES      28
#define NBD_SIMPLE_REPLY_BYTES 16
#define NBD_CHUNK_BYTES        20
#define NBD_DESCRIPTOR_BYTES   8

/* The longest fixed part of a reply of ours: a chunk header and the offset of an OFFSET_DATA chunk. */
#define TZ_NBD_HEAD_BYTES (NBD_CHUNK_BYTES + 8)

enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum {
    NBD_REPLY_FLAG_DONE = 1 << 0,
};

enum {
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_ERROR = (1 << 15) + 1,
};

enum {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

typedef struct tz_nbd_wire {
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} tz_nbd_wire;

/* What a connection was promised, and so what a request may ask for. */
typedef struct tz_nbd_terms {
    uint64_t size; /* bytes of the volume */
    bool structured, block_status, read_only;
} tz_nbd_terms;

typedef struct tz_nbd_verdict {
    uint32_t error;      /* NBD_OK: may be carried out */
    const char *message; /* for a human; a static string */
} tz_nbd_verdict;

/* False when the magic number is wrong: the stream is out of step. */
bool tz_nbd_decode(tz_nbd_wire *out, const uint8_t bytes[NBD_REQUEST_BYTES]);

tz_nbd_verdict tz_nbd_judge(const tz_nbd_wire *wire, const tz_nbd_terms *terms);

/* The NBD error for the result of a volume request; NBD_OK for what is not negative. */
tz_nbd_verdict tz_nbd_explain(const tz_nbd_wire *wire, int64_t result);

/* Each returns the bytes it wrote. A chunk is the final one of its reply. */
size_t tz_nbd_encode_simple(uint8_t *out, uint64_t cookie, uint32_t error);
size_t tz_nbd_encode_chunk(uint8_t *out, uint64_t cookie, uint16_t type, uint32_t length);

static inline void tz_nbd_put16(uint8_t *out, uint16_t value)
{
    value = htobe16(value);
    memcpy(out, &value, sizeof(value));
}

static inline void tz_nbd_put32(uint8_t *out, uint32_t value)
{
    value = htobe32(value);
    memcpy(out, &value, sizeof(value));
}

static inline void tz_nbd_put64(uint8_t *out, uint64_t value)
{
    value = htobe64(value);
    memcpy(out, &value, sizeof(value));
}

static inline uint16_t tz_nbd_get16(const uint8_t *in)
{
    uint16_t value;

    memcpy(&value, in, sizeof(value));
    return be16toh(value);
}

static inline uint32_t tz_nbd_get32(const uint8_t *in)
{
    uint32_t value;

    memcpy(&value, in, sizeof(value));
    return be32toh(value);
}

static inline uint64_t tz_nbd_get64(const uint8_t *in)
{
    uint64_t value;

    memcpy(&value, in, sizeof(value));
    return be64toh(value);
}

#endif
