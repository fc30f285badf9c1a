/* SPDX-License-Identifier: Apache-2.0
 *
 * The copies of the digest's body, one per instruction set; only digest.c calls them, and their tests.
 */
#ifndef TZ_DATA_DIGEST_KERNELS_H
#define TZ_DATA_DIGEST_KERNELS_H

#include "tz/digest.h"

#define TZ_DIGEST_KERNEL(set)                                                                                          \
    bool tz_digest_chunk_##set(tz_digest *out, const uint8_t *data, size_t length);                                    \
    void tz_digest_plain_##set(tz_digest *out, const uint8_t *data, size_t length);                                    \
    bool tz_digest_is_zero_##set(const uint8_t *data, size_t length)

/* True when the digest of that many zeros is known without computing it. */
bool tz_digest_known_zeros(tz_digest *out, size_t length);

TZ_DIGEST_KERNEL(base);
#if defined(__x86_64__)
TZ_DIGEST_KERNEL(avx2);
#endif

#endif
