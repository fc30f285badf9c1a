/* SPDX-License-Identifier: Apache-2.0
 *
 * The extent map's inside, shared by building (extents.c) and looking up (extents_lookup.c).
 */
#ifndef TZ_DATA_EXTENTS_MAP_H
#define TZ_DATA_EXTENTS_MAP_H

#include "search.h"
#include "tz/extents.h"

/* An extent that is data, in the reverse table: in order of physical, then of logical addresses. Overlapping ones
 * are found with an interval tree laid over the table: the middle of [low, high) is the root of
 * that range, and its `reach` is the highest end in the range. */
typedef struct tz_reverse {
    uint64_t physical, logical, length;
    uint64_t reach;
} tz_reverse;

struct tz_extents {
    tz_extent *extents; /* by logical address */
    uint64_t count;
    tz_search forward; /* over extents[].logical */

    tz_reverse *reverse; /* NULL without TZ_EXTENTS_REVERSE */
    uint64_t reverse_count;
    tz_search backward; /* over reverse[].physical */
    bool shared;        /* some physical bytes are seen at several logical addresses */

    uint64_t bytes, physical_end; /* of data */
};

/* Is `address` in [start, start + length)? */
static inline bool tz_covers(uint64_t start, uint64_t length, uint64_t address)
{
    return address - start < length;
}

#endif
