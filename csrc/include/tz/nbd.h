/* SPDX-License-Identifier: Apache-2.0
 *
 * The transmission phase of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md): a connection that was
 * negotiated elsewhere is handed over as a socket and served on the volume's thread until either side ends it.
 *
 * Every field from the socket is checked. A request that is malformed but leaves the stream in step is
 * answered with an error; one that does not (bad magic, oversized payload) ends the connection, never the server.
 * Memory is bounded: a connection reads no further request while its requests in flight hold its limit. Nor does it
 * while there is none for the next, within bounds of time: the answer is ENOMEM then, and to all that follow until there
 * is some again.
 *
 * Errors   adopt: -EINVAL, -ENOMEM, -ESHUTDOWN (the volume's connections are being closed), and then the socket
 *          stays the caller's.
 * Memory   the connection frees itself when its last request has completed.
 * Threads  adopt, close_all: any thread but the volume's; all else runs on the volume's thread.
 */
#ifndef TZ_NBD_H
#define TZ_NBD_H

#include "tz/reactor.h"
#include "tz/volume.h"

#define TZ_NBD_MAX_PAYLOAD (32 * TZ_MIB)

enum {
    TZ_NBD_STRUCTURED = 1 << 0,      /* structured replies were negotiated */
    TZ_NBD_BASE_ALLOCATION = 1 << 1, /* the meta context was selected, under context_id */
    TZ_NBD_READ_ONLY = 1 << 2,
};

typedef struct tz_nbd_config {
    unsigned flags;
    uint32_t context_id;
    uint32_t max_requests; /* in flight a connection, at most 4096; 0 = 128 */
    uint32_t silent_ms;    /* a TCP peer that answers nothing so long has gone; 0 = 105000 */
    uint64_t max_bytes;    /* payload in flight a connection, or one request's if that is more; 0 = 64 MiB */
    uint64_t patience_ns;  /* a request waits so long for memory before it is refused; 0 = 20 s */
} tz_nbd_config;

typedef struct tz_nbd_stats {
    uint64_t connections; /* now */
    uint64_t requests, protocol_errors;
} tz_nbd_stats;

/* The transmission flags the handshake has to announce for this volume. SEND_DF (bit 7) is among them: the handshake
 * clears it for a client that did not negotiate structured replies. */
uint16_t tz_nbd_transmission_flags(const tz_volume *volume, bool read_only);

/* [any] Takes the socket over: a stream socket, made blocking. -EINVAL: it is something else, the volume is not the
 * reactor's, or the configuration contradicts itself. */
int tz_nbd_adopt(tz_reactor *reactor, tz_volume *volume, int fd, const tz_nbd_config *config);

/* [any] Ends all connections of a volume and takes no new ones: reads nothing more, lets issued requests complete and
 * their replies be sent; clients that have not taken those after half of timeout_ns (at most a second) are cut off. 0,
 * and the counters are forgotten; or -ETIMEDOUT, and it may be called again. Before tz_volume_close. */
int tz_nbd_close_all(tz_reactor *reactor, tz_volume *volume, uint64_t timeout_ns);

/* [any] */
void tz_nbd_stats_get(tz_reactor *reactor, const tz_volume *volume, tz_nbd_stats *out);

#endif
