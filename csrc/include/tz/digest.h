/* SPDX-License-Identifier: Apache-2.0
 *
 * Digest of a chunk, XXH3-128 (canonical, big-endian bytes), with zero detection. A chunk that is not zero
 * is told apart within a few bytes, in most cases; the digest of zeros of a usual length is known. So a chunk is read
 * once, except one whose few bytes that are not zero are hard to find.
 * The fastest vector code this CPU has is chosen at run time.
 *
 * Errors   none.   Memory   none.   Threads  any.
 */
#ifndef TZ_DIGEST_H
#define TZ_DIGEST_H

#include "tz/common.h"

#define TZ_DIGEST_BYTES 16

typedef struct tz_digest {
    uint8_t bytes[TZ_DIGEST_BYTES];
} tz_digest;

/* Returns true when all `length` bytes are zero (the digest is computed all the same: it is that of the zeros). */
bool tz_digest_chunk(tz_digest *out, const void *data, size_t length);

/* The digest alone: for data whose digest is known and wants checking. */
void tz_digest_plain(tz_digest *out, const void *data, size_t length);

/* The digest of `length` zero bytes. */
void tz_digest_zeros(tz_digest *out, size_t length);

/* Are all `length` bytes zero? Stops at the first that is not. */
bool tz_is_zero(const void *data, size_t length);

#endif
