/* SPDX-License-Identifier: Apache-2.0
 *
 * Stable radix sort of keys with the places they came from. Only the bits in which keys differ are
 * sorted by: addresses are multiples of a block within one volume, so two or three passes do.
 *
 * Memory   `spare` is as large as `pairs`; the result is in either, the returned one.
 */
#ifndef TZ_DATA_RADIX_H
#define TZ_DATA_RADIX_H

#include "tz/common.h"

typedef struct tz_pair {
    uint64_t key, place;
} tz_pair;

tz_pair *tz_radix_sort(tz_pair *pairs, tz_pair *spare, uint64_t count);

#endif
