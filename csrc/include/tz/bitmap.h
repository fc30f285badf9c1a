/* SPDX-License-Identifier: Apache-2.0
 *
 * A bitmap of atomic 64-bit words over memory that the caller owns (private, or shared between processes).
 *
 * Errors   none: ranges are the caller's invariant (asserted).
 * Memory   never allocates; tz_bitmap_bytes says how much to provide, zero-filled.
 * Threads  single-bit and range updates are atomic a word at a time, sequentially consistent; a scan sees
 *          each word as it was at some moment of the scan.
 */
#ifndef TZ_BITMAP_H
#define TZ_BITMAP_H

#include <stdatomic.h>

#include "tz/common.h"

#define TZ_BITMAP_NONE UINT64_MAX

typedef struct tz_bitmap {
    _Atomic uint64_t *words;
    uint64_t bits;
} tz_bitmap;

size_t tz_bitmap_bytes(uint64_t bits); /* a multiple of 8 */
void tz_bitmap_init(tz_bitmap *map, void *memory, uint64_t bits);

bool tz_bitmap_test(const tz_bitmap *map, uint64_t bit);
bool tz_bitmap_claim(tz_bitmap *map, uint64_t bit);   /* set; true when this call set it */
bool tz_bitmap_unclaim(tz_bitmap *map, uint64_t bit); /* clear; true when this call cleared it */

/* Ranges are [from, from + count). set and clear return how many bits they changed. */
uint64_t tz_bitmap_set_range(tz_bitmap *map, uint64_t from, uint64_t count);
uint64_t tz_bitmap_clear_range(tz_bitmap *map, uint64_t from, uint64_t count);
bool tz_bitmap_any(const tz_bitmap *map, uint64_t from, uint64_t count);
bool tz_bitmap_all(const tz_bitmap *map, uint64_t from, uint64_t count);
uint64_t tz_bitmap_count(const tz_bitmap *map, uint64_t from, uint64_t count);

/* The first set (clear) bit at or after `from`, or TZ_BITMAP_NONE. */
uint64_t tz_bitmap_next_set(const tz_bitmap *map, uint64_t from);
uint64_t tz_bitmap_next_clear(const tz_bitmap *map, uint64_t from);

#endif
