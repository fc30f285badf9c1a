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

static tz_extent column_extent(const struct columns *in, uint64_t place)
{
    tz_extent extent = {in->logical[place], in->physical[place], in->length[place], in->flags ? in->flags[place] : 0,
                        0};

    if (extent.flags & TZ_EXTENT_ZERO)
        extent.physical = TZ_EXTENT_NONE;
    return extent;
}

static bool continues(const tz_extent *last, const tz_extent *extent)
{
    return last->logical + last->length == extent->logical && last->flags == extent->flags &&
           (last->flags & TZ_EXTENT_ZERO || last->physical + last->length == extent->physical);
}

/* The table of extents from the columns, in the order of `sorted`: checked, neighbours made one. */
static int gather(tz_extents *map, const struct columns *in, const tz_pair *sorted)
{
    tz_extent *last = NULL;

    for (uint64_t i = 0; i < in->count; i++) {
        tz_extent extent = column_extent(in, sorted[i].place);
        int error = check_extent(&extent);

        if (i + GATHER_AHEAD < in->count) {
            __builtin_prefetch(&in->physical[sorted[i + GATHER_AHEAD].place]);
            __builtin_prefetch(&in->length[sorted[i + GATHER_AHEAD].place]);
        }
        if (error < 0)
            return error;
        if (last && last->logical + last->length > extent.logical)
            return -EINVAL;
        if (last && continues(last, &extent)) {
            last->length += extent.length;
        } else {
            last = &map->extents[map->count++];
            *last = extent;
        }
        if (!(extent.flags & TZ_EXTENT_ZERO)) {
            map->bytes += extent.length;
            map->physical_end = tz_max_u64(map->physical_end, extent.physical + extent.length);
        }
    }
    return 0;
}

static int build_forward(tz_extents *map, const struct columns *in, tz_pair *pairs)
{
    int error;

    for (uint64_t i = 0; i < in->count; i++)
        pairs[i] = (tz_pair){in->logical[i], i};
    map->extents = tz_table_alloc(in->count, sizeof(*map->extents));
    if (!map->extents)
        return -ENOMEM;
    error = gather(map, in, tz_radix_sort(pairs, pairs + in->count, in->count));
    if (error < 0)
        return error;
    return tz_search_build(&map->forward, &map->extents->logical, sizeof(*map->extents), map->count);
}

/* The interval tree over table[0, count): each root's reach is the highest end of its range, which is returned. Depth
 * is that of a balanced tree. */
static uint64_t fill_reach(tz_reverse *table, uint64_t count)
{
    uint64_t middle = count / 2, reach;

    if (count == 0)
        return 0;
    reach = tz_max_u64(table[middle].physical + table[middle].length, fill_reach(table, middle));
    reach = tz_max_u64(reach, fill_reach(table + middle + 1, count - middle - 1));
    return table[middle].reach = reach;
}

/* `pairs` has room for twice the extents. Sorting is stable, so equal physical addresses stay in logical order. */
static int build_reverse(tz_extents *map, tz_pair *pairs)
{
    uint64_t count = 0, reach = 0;
    const tz_pair *sorted;

    for (uint64_t i = 0; i < map->count; i++) {
        if (!(map->extents[i].flags & TZ_EXTENT_ZERO))
            pairs[count++] = (tz_pair){map->extents[i].physical, i};
    }
    map->reverse = tz_table_alloc(count, sizeof(*map->reverse));
    if (!map->reverse)
        return -ENOMEM;
    map->reverse_count = count;
    sorted = tz_radix_sort(pairs, pairs + count, count);
    for (uint64_t i = 0; i < count; i++) {
        const tz_extent *extent = &map->extents[sorted[i].place];

        map->reverse[i] = (tz_reverse){extent->physical, extent->logical, extent->length, 0};
        map->shared |= extent->physical < reach;
        reach = tz_max_u64(reach, extent->physical + extent->length);
        if (i + GATHER_AHEAD < count)
            __builtin_prefetch(&map->extents[sorted[i + GATHER_AHEAD].place]);
    }
    if (map->shared)
        fill_reach(map->reverse, count);
    return tz_search_build(&map->backward, &map->reverse->physical, sizeof(*map->reverse), count);
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
        error = build_reverse(map, pairs);
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
    tz_search_clear(&map->forward);
    tz_search_clear(&map->backward);
    free(map->extents);
    free(map->reverse);
    free(map);
}

uint64_t tz_extents_count(const tz_extents *map)
{
    return map->count;
}

const tz_extent *tz_extents_at(const tz_extents *map, uint64_t at)
{
    assert(at < map->count);
    return &map->extents[at];
}

uint64_t tz_extents_bytes(const tz_extents *map)
{
    return map->bytes;
}

bool tz_extents_has_reverse(const tz_extents *map)
{
    return map->reverse;
}

int tz_extents_tracks(const tz_extents *map, uint64_t track_size, tz_bitmap *tracks)
{
    unsigned shift = (unsigned)__builtin_ctzll(track_size);

    assert(tz_is_pow2(track_size));
    if (map->bytes && (map->physical_end - 1) >> shift >= tracks->bits)
        return -ERANGE;
    for (uint64_t i = 0; i < map->count; i++) {
        const tz_extent *extent = &map->extents[i];

        if (!(extent->flags & TZ_EXTENT_ZERO)) {
            uint64_t first = extent->physical >> shift, last = (extent->physical + extent->length - 1) >> shift;

            tz_bitmap_set_range(tracks, first, last - first + 1);
        }
    }
    return 0;
}
