/* SPDX-License-Identifier: Apache-2.0 */
#include "extents_map.h"

/* The place that covers `address`, with how far into it the address is; NULL: none. `next`: the first key beyond. */
static const tz_place *find(const tz_direction *direction, uint64_t address, uint64_t *skip, uint64_t *next)
{
    int64_t query = tz_search_query(address);
    uint64_t leaf, rank;

    tz_search_leaves(&direction->search, &query, &leaf, 1);
    rank = leaf * TZ_SEARCH_KEYS + tz_search_node_rank(tz_search_leaf(&direction->search, leaf), query);
    *next = rank < direction->count ? tz_direction_key(direction, rank) : UINT64_MAX;
    if (rank == 0)
        return NULL;
    *skip = address - tz_direction_key(direction, rank - 1);
    return *skip < direction->places[rank - 1].length ? &direction->places[rank - 1] : NULL;
}

bool tz_extents_lookup(const tz_extents *map, uint64_t logical, tz_extent *run)
{
    uint64_t skip, next;
    const tz_place *place = find(&map->forward, logical, &skip, &next);

    if (!place)
        *run = (tz_extent){logical, TZ_EXTENT_NONE, next - logical, TZ_EXTENT_ZERO, 0};
    else if (place->to == TZ_EXTENT_NONE)
        *run = (tz_extent){logical, TZ_EXTENT_NONE, place->length - skip, TZ_EXTENT_ZERO, 0};
    else
        *run = (tz_extent){logical, place->to + skip, place->length - skip, 0, 0};
    return place;
}

/* What a look-up by physical address does with an extent that covers it. */
struct visit {
    uint64_t physical;
    tz_extent *runs;
    uint64_t room, found;
    uint64_t lowest; /* logical address */
};

static void visit_place(struct visit *visit, const tz_place *place, uint64_t skip)
{
    if (visit->found < visit->room)
        visit->runs[visit->found] = (tz_extent){place->to + skip, visit->physical, place->length - skip, 0, 0};
    visit->found++;
    visit->lowest = tz_min_u64(visit->lowest, place->to + skip);
}

/* All of the extents [low, high) that cover the address, through the interval tree: O(log n) for each. */
static void visit_covering(struct visit *visit, const tz_extents *map, uint64_t low, uint64_t high)
{
    while (low < high) {
        uint64_t middle = low + (high - low) / 2, skip;

        if (map->reach[middle] <= visit->physical)
            return;
        visit_covering(visit, map, low, middle);
        if (tz_direction_key(&map->backward, middle) > visit->physical)
            return;
        skip = visit->physical - tz_direction_key(&map->backward, middle);
        if (skip < map->backward.places[middle].length)
            visit_place(visit, &map->backward.places[middle], skip);
        low = middle + 1;
    }
}

uint64_t tz_extents_reverse(const tz_extents *map, uint64_t physical, tz_extent *runs, uint64_t room)
{
    struct visit visit = {.physical = physical, .runs = runs, .room = room, .lowest = TZ_EXTENT_NONE};

    assert(map->backward.places);
    if (map->reach) {
        visit_covering(&visit, map, 0, map->backward.count);
    } else {
        uint64_t skip, next;
        const tz_place *place = find(&map->backward, physical, &skip, &next);

        if (place)
            visit_place(&visit, place, skip);
    }
    return visit.found;
}

void tz_extents_lookup_batch(const tz_extents *map, const uint64_t *from, uint64_t *to, uint64_t count)
{
    tz_direction_lookup(&map->forward, from, to, count);
}

void tz_extents_reverse_batch(const tz_extents *map, const uint64_t *from, uint64_t *to, uint64_t count)
{
    assert(map->backward.places);
    if (!map->reach) {
        tz_direction_lookup(&map->backward, from, to, count);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        struct visit visit = {.physical = from[i], .lowest = TZ_EXTENT_NONE};

        visit_covering(&visit, map, 0, map->backward.count);
        to[i] = visit.lowest;
    }
}
