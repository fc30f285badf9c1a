/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "extents_map.h"
#include "radix.h"
#include "table.h"

/* Columns are gathered in an order that the cache cannot foresee; asked for this many entries ahead,
 * they are there in time. */
#define GATHER_AHEAD 16

struct columns {
    const uint64_t *logical, *physical, *length;
    const uint32_t *flags; /* or NULL */
    uint64_t count;
};

static int check_extent(const tz_extent *extent)
{
    if (extent->length == 0 || extent->flags & ~(uint32_t)TZ_EXTENT_ZERO)
        return -EINVAL;
    if (extent->length > TZ_EXTENT_END || extent->logical > TZ_EXTENT_END - extent->length)
        return -EOVERFLOW;
    if (!(extent->flags & TZ_EXTENT_ZERO) && extent->physical > TZ_EXTENT_END - extent->length)
        return -EOVERFLOW;
    return 0;
}

static tz_extent column_extent(const struct columns *in, uint64_t at)
{
    tz_extent extent = {in->logical[at], in->physical[at], in->length[at], in->flags ? in->flags[at] : 0, 0};

    if (extent.flags & TZ_EXTENT_ZERO)
        extent.physical = TZ_EXTENT_NONE;
    return extent;
}

static bool continues(const tz_extent *last, const tz_extent *extent)
{
    return last->logical + last->length == extent->logical && last->flags == extent->flags &&
           (last->flags & TZ_EXTENT_ZERO || last->physical + last->length == extent->physical);
}

/* The extents in the order of `sorted`, checked, neighbours made one. Their logical addresses take the places of
 * keys already read. */
static int gather(tz_extents *map, const struct columns *in, tz_pair *sorted)
{
    tz_direction *forward = &map->forward;
    tz_extent last = {0};

    for (uint64_t i = 0; i < in->count; i++) {
        tz_extent extent = column_extent(in, sorted[i].place);
        int error = check_extent(&extent);

        if (i + GATHER_AHEAD < in->count) {
            __builtin_prefetch(&in->physical[sorted[i + GATHER_AHEAD].place]);
            __builtin_prefetch(&in->length[sorted[i + GATHER_AHEAD].place]);
        }
        if (error < 0)
            return error;
        if (last.logical + last.length > extent.logical)
            return -EINVAL;
        if (forward->count && continues(&last, &extent)) {
            last.length += extent.length;
        } else {
            last = extent;
            sorted[forward->count++].key = extent.logical;
        }
        forward->places[forward->count - 1] = (tz_place){last.physical, last.length};
        if (!(extent.flags & TZ_EXTENT_ZERO)) {
            map->bytes += extent.length;
            map->physical_end = tz_max_u64(map->physical_end, extent.physical + extent.length);
        }
    }
    return 0;
}

static int build_forward(tz_extents *map, const struct columns *in, tz_pair *pairs)
{
    tz_pair *sorted;
    int error;

    for (uint64_t i = 0; i < in->count; i++)
        pairs[i] = (tz_pair){in->logical[i], i};
    map->forward.places = tz_table_alloc(in->count, sizeof(tz_place));
    if (!map->forward.places)
        return -ENOMEM;
    sorted = tz_radix_sort(pairs, pairs + in->count, in->count);
    error = gather(map, in, sorted);
    if (error < 0)
        return error;
    return tz_search_build(&map->forward.search, &sorted->key, sizeof(*sorted), map->forward.count);
}

/* The interval tree over extents [low, high); its highest end. Depth is that of a balanced tree. */
static uint64_t fill_reach(tz_extents *map, uint64_t low, uint64_t high)
{
    uint64_t middle = low + (high - low) / 2, reach;

    if (low == high)
        return 0;
    reach = tz_direction_key(&map->backward, middle) + map->backward.places[middle].length;
    reach = tz_max_u64(reach, fill_reach(map, low, middle));
    reach = tz_max_u64(reach, fill_reach(map, middle + 1, high));
    return map->reach[middle] = reach;
}

/* True when extents overlap physically. */
static bool fill_backward(tz_extents *map, const tz_pair *sorted)
{
    tz_direction *backward = &map->backward;
    uint64_t reach = 0;
    bool shared = false;

    for (uint64_t i = 0; i < backward->count; i++) {
        uint64_t place = sorted[i].place, length = map->forward.places[place].length;

        backward->places[i] = (tz_place){tz_direction_key(&map->forward, place), length};
        shared |= sorted[i].key < reach;
        reach = tz_max_u64(reach, sorted[i].key + length);
        if (i + GATHER_AHEAD < backward->count) {
            __builtin_prefetch(&map->forward.places[sorted[i + GATHER_AHEAD].place]);
            __builtin_prefetch(&tz_search_keys(&map->forward.search)[sorted[i + GATHER_AHEAD].place]);
        }
    }
    return shared;
}

/* `pairs` has room for twice the extents. Sorting is stable, so equal physical addresses stay in logical order. */
static int build_backward(tz_extents *map, tz_pair *pairs)
{
    tz_direction *backward = &map->backward;
    const tz_pair *sorted;
    bool shared;
    int error;

    for (uint64_t i = 0; i < map->forward.count; i++) {
        if (map->forward.places[i].to != TZ_EXTENT_NONE)
            pairs[backward->count++] = (tz_pair){map->forward.places[i].to, i};
    }
    backward->places = tz_table_alloc(backward->count, sizeof(tz_place));
    if (!backward->places)
        return -ENOMEM;
    sorted = tz_radix_sort(pairs, pairs + backward->count, backward->count);
    shared = fill_backward(map, sorted);
    error = tz_search_build(&backward->search, &sorted->key, sizeof(*sorted), backward->count);
    if (error < 0 || !shared)
        return error;
    map->reach = tz_table_alloc(backward->count, sizeof(*map->reach));
    if (!map->reach)
        return -ENOMEM;
    fill_reach(map, 0, backward->count);
    return 0;
}

int tz_extents_build(tz_extents **out, const uint64_t *logical, const uint64_t *physical, const uint64_t *length,
                     const uint32_t *flags, uint64_t count, unsigned options)
{
    const struct columns in = {logical, physical, length, flags, count};
    tz_extents *map;
    tz_pair *pairs;
    int error;

    if (options & ~(unsigned)TZ_EXTENTS_REVERSE)
        return -EINVAL;
    if (count > PTRDIFF_MAX / (2 * sizeof(tz_pair)))
        return -ENOMEM;
    map = calloc(1, sizeof(*map));
    pairs = tz_table_alloc(2 * count, sizeof(*pairs));
    error = map && pairs ? build_forward(map, &in, pairs) : -ENOMEM;
    if (error == 0 && options & TZ_EXTENTS_REVERSE)
        error = build_backward(map, pairs);
    free(pairs);
    if (error < 0)
        tz_extents_destroy(map);
    else
        *out = map;
    return error;
}

void tz_extents_destroy(tz_extents *map)
{
    if (!map)
        return;
    tz_search_clear(&map->forward.search);
    tz_search_clear(&map->backward.search);
    free(map->forward.places);
    free(map->backward.places);
    free(map->reach);
    free(map);
}

uint64_t tz_extents_count(const tz_extents *map)
{
    return map->forward.count;
}

tz_extent tz_extents_at(const tz_extents *map, uint64_t at)
{
    const tz_place *place = &map->forward.places[at];

    assert(at < map->forward.count);
    return (tz_extent){tz_direction_key(&map->forward, at), place->to, place->length,
                       place->to == TZ_EXTENT_NONE ? TZ_EXTENT_ZERO : 0, 0};
}

uint64_t tz_extents_bytes(const tz_extents *map)
{
    return map->bytes;
}

bool tz_extents_has_reverse(const tz_extents *map)
{
    return map->backward.places;
}

int tz_extents_tracks(const tz_extents *map, uint64_t track_size, tz_bitmap *tracks)
{
    unsigned shift = (unsigned)__builtin_ctzll(track_size);

    assert(tz_is_pow2(track_size));
    if (map->bytes && (map->physical_end - 1) >> shift >= tracks->bits)
        return -ERANGE;
    for (uint64_t i = 0; i < map->forward.count; i++) {
        const tz_place *place = &map->forward.places[i];

        if (place->to != TZ_EXTENT_NONE) {
            uint64_t first = place->to >> shift, last = (place->to + place->length - 1) >> shift;

            tz_bitmap_set_range(tracks, first, last - first + 1);
        }
    }
    return 0;
}
