/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory for large tables that are visited at random: aligned to cache lines, and in huge pages where the kernel has
 * them. Random look-ups among a million extents miss the TLB as often as the cache, and first touch by 4 KiB pages
 * costs as much as sorting. Freed with free().
 *
 * Errors   NULL: no memory, or a size that overflows.
 */
#ifndef TZ_DATA_TABLE_H
#define TZ_DATA_TABLE_H

#include <stdlib.h>
#include <sys/mman.h>

#include "tz/common.h"

static inline void *tz_table_alloc(uint64_t count, size_t entry_bytes)
{
    const uint64_t huge = 2 * TZ_MIB;
    uint64_t bytes, align;
    void *table;

    if (__builtin_mul_overflow(count, (uint64_t)entry_bytes, &bytes) || bytes > PTRDIFF_MAX - huge)
        return NULL;
    align = bytes < huge ? TZ_CACHE_LINE : huge;
    bytes = tz_align_up(tz_max_u64(bytes, 1), align);
    table = aligned_alloc(align, bytes);
    if (table && align == huge)
        (void)madvise(table, bytes, MADV_HUGEPAGE); /* advice: small pages do as well */
    return table;
}

#endif
