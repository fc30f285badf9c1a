/* SPDX-License-Identifier: Apache-2.0
 *
 * Payload buffers of a reactor's connections: aligned to 4096, in sizes of powers of two from 4 KiB to 32 MiB.
 *
 * A buffer that is given back is kept for the next request of its size, so that the steady state allocates nothing;
 * what is kept idle is bounded, and freed when there is no memory for another size.
 *
 * Errors   take: NULL when there is no memory.
 * Memory   destroy frees what is kept; buffers taken must have been given back.
 * Threads  the reactor's own.
 */
#ifndef TZ_SUBSYSTEM_NBD_PAYLOAD_H
#define TZ_SUBSYSTEM_NBD_PAYLOAD_H

#include "tz/common.h"

#define TZ_NBD_PAYLOAD_CLASSES 14
#define TZ_NBD_PAYLOAD_MIN     (4 * TZ_KIB)

/* Kept idle at most: four connections of nbdcopy have 4 x 64 x 256 KiB in flight. */
#define TZ_NBD_PAYLOAD_IDLE (64 * TZ_MIB)

typedef struct tz_nbd_payloads {
    void *idle[TZ_NBD_PAYLOAD_CLASSES]; /* a list a class; the link lies in the buffer */
    uint64_t idle_bytes;
} tz_nbd_payloads;

/* What a buffer for `length` bytes (at most 32 MiB) takes; at least one page. */
uint64_t tz_nbd_payload_bytes(uint64_t length);

void *tz_nbd_payload_take(tz_nbd_payloads *payloads, uint64_t length);

/* `length` as it was when taken. */
void tz_nbd_payload_give(tz_nbd_payloads *payloads, void *buffer, uint64_t length);

void tz_nbd_payloads_destroy(tz_nbd_payloads *payloads);

#endif
