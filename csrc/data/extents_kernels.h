/* SPDX-License-Identifier: Apache-2.0
 *
 * The copies of batched look-up's body, one per instruction set; only extents_batch.c calls them, and their tests.
 */
#ifndef TZ_DATA_EXTENTS_KERNELS_H
#define TZ_DATA_EXTENTS_KERNELS_H

#include "extents_map.h"

/* The direction has an extent at least. */
#define TZ_EXTENTS_KERNEL(set)                                                                                         \
    void tz_direction_lookup_##set(const tz_direction *direction, const uint64_t *from, uint64_t *to, uint64_t count)

TZ_EXTENTS_KERNEL(base);
#if defined(__x86_64__)
TZ_EXTENTS_KERNEL(avx2);
TZ_EXTENTS_KERNEL(avx512);
#endif

#endif
