/* SPDX-License-Identifier: Apache-2.0
 *
 * The extent map's inside, shared by building (extents.c) and looking up (extents_lookup.c).
 */
#ifndef TZ_DATA_EXTENTS_MAP_H
#define TZ_DATA_EXTENTS_MAP_H

#include "search.h"
#include "tz/extents.h"

/* Where an extent lies on the other side. Its address on this side is its key in the search tree, which has just been
 * visited when this is read; kept apart, and small, so that a million extents stay within reach of the caches. */
typedef struct tz_place {
    uint64_t to; /* TZ_EXTENT_NONE: zeros */
    uint64_t length;
} tz_place;

/* Look-up in one direction: place i belongs to key i. */
typedef struct tz_direction {
    tz_search search;
    tz_place *places;
    uint64_t count;
} tz_direction;

struct tz_extents {
    tz_direction forward;  /* all extents, by logical address */
    tz_direction backward; /* those that are data, by physical, then by logical address; no places: not asked for */

    /* NULL unless physical bytes are seen at several logical addresses: an interval tree laid over `backward`. The
     * middle of [low, high) is the root of that range, and its reach is the highest end in the range. */
    uint64_t *reach;

    uint64_t bytes, physical_end; /* of data */
};

/* tz_extents_lookup_batch, either way. */
void tz_direction_lookup(const tz_direction *direction, const uint64_t *from, uint64_t *to, uint64_t count);

static inline uint64_t tz_direction_key(const tz_direction *direction, uint64_t at)
{
    return (uint64_t)tz_search_keys(&direction->search)[at];
}

#endif
