/* SPDX-License-Identifier: Apache-2.0
 *
 * A file on a served volume under a session: the concordance says where its chunks lie. (Loading: session_load.c.)
 *
 * Ahead of order. A slot names a track; which chunk of this file needs it, the reverse look-up says. It is asked for
 * one address in every `grain` bytes of the track, the power of two that all extents begin and end at, so that
 * an extent that begins inside the track is found; for many slots at once, because searches overlap, and because the
 * chunk that is met most often among them gives back the most (source_session.c).
 */
#include <errno.h>
#include <stdlib.h>

#include "session_view.h"

/* Addresses looked up in one go, and places looked at for one claim: at 40 ns an address and 4 KiB blocks in tracks of
 * 16 KiB, a claim takes at most 0.2 ms. */
#define PROBES      256
#define MOST_PROBES 32 /* of one track */
#define AHEAD_SCAN  1024

typedef struct extents_source {
    tz_source base;
    tz_session_view *view;
    tz_extents *map;
    uint64_t grain; /* bytes, at most a track */
    uint32_t chunk_size;
    tz_live_scan scan; /* for claims ahead; under the transfer's lock */
} extents_source;

static extents_source *of(tz_source *base)
{
    return tz_container_of(base, extents_source, base);
}

static void activity(const tz_source *base, tz_activity *out)
{
    tz_session_view_activity(tz_container_of(base, extents_source, base)->view, out);
}

/* ---- ahead of order ---- */

/* The addresses of the next live tracks that are to be looked up; how many, or -EPROTO. `left`: places to look at. */
static int collect(extents_source *source, uint64_t *addresses, uint32_t *left)
{
    const tz_session_view *view = source->view;
    const uint32_t probes = (uint32_t)(view->track_size / source->grain);
    uint32_t count = 0;
    uint64_t track;

    while (count + probes <= PROBES) {
        int rc = tz_session_view_next_live(view, &source->scan, left, &track);

        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        for (uint32_t i = 0; i < probes; i++)
            addresses[count++] = (track << view->track_shift) + i * source->grain;
    }
    return (int)count;
}

/* How often each chunk was met; open addressing, at most half full. */
typedef struct tally {
    uint64_t chunk[2 * PROBES]; /* number + 1; 0: free */
    uint32_t count[2 * PROBES];
} tally;

static uint32_t add(tally *tally, uint64_t chunk)
{
    uint32_t at = (uint32_t)((chunk * UINT64_C(0x9e3779b97f4a7c15)) >> 32) % (2 * PROBES);

    while (tally->chunk[at] && tally->chunk[at] != chunk + 1)
        at = (at + 1) % (2 * PROBES);
    tally->chunk[at] = chunk + 1;
    return ++tally->count[at];
}

/* Of the chunks that nobody has claimed, the one that was met most often. False: there is none. */
static bool claim_densest(extents_source *source, tz_bitmap *claimed, const uint64_t *logical, uint32_t count,
                          uint64_t *number)
{
    tally tally = {0};
    uint32_t most = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t chunk = logical[i] / source->chunk_size;
        uint32_t met;

        if (logical[i] >= source->base.size || tz_bitmap_test(claimed, chunk)) /* TZ_EXTENT_NONE, too */
            continue;
        met = add(&tally, chunk);
        if (met > most) {
            most = met;
            *number = chunk;
        }
    }
    return most > 0 && tz_bitmap_claim(claimed, *number);
}

/* Under the transfer's lock: of the chunks that need a track of a live slot and are not claimed, the one that most of
 * a batch of such tracks are of. The order of a single chunk is of no account. */
static int ahead(tz_source *base, tz_bitmap *claimed, uint64_t *number)
{
    extents_source *source = of(base);
    uint32_t left = AHEAD_SCAN;
    uint64_t addresses[PROBES];

    if (claimed->bits < 2 || !tz_session_view_drains(source->view))
        return 0;
    for (;;) {
        int count = collect(source, addresses, &left);

        if (count <= 0)
            return count;
        tz_extents_reverse_batch(source->map, addresses, addresses, (uint64_t)count);
        if (claim_densest(source, claimed, addresses, (uint32_t)count, number))
            return 1;
    }
}

/* ---- loading ---- */

static bool find_run(tz_source *base, uint64_t logical, tz_extent *run)
{
    return tz_extents_lookup(of(base)->map, logical, run);
}

static int load(tz_source *base, tz_chunk *chunk)
{
    return tz_session_load(of(base)->view, chunk, find_run);
}

/* A run is what a chunk has of an extent. */
static int count_uses(extents_source *source)
{
    const uint32_t shift = source->view->track_shift;

    for (uint64_t i = 0; i < tz_extents_count(source->map); i++) {
        tz_extent extent = tz_extents_at(source->map, i);
        uint64_t end = tz_min_u64(extent.logical + extent.length, source->base.size), length;

        for (uint64_t at = extent.logical; at < end; at += length) {
            uint64_t from = extent.physical + (at - extent.logical), first = from >> shift;
            int rc;

            length = tz_min_u64(end - at, source->chunk_size - at % source->chunk_size);
            rc = tz_session_uses_add(&source->view->uses, first, ((from + length - 1) >> shift) - first + 1);
            if (rc < 0)
                return rc;
        }
    }
    return 0;
}

static int prepare(tz_source *base, uint32_t chunk_size)
{
    extents_source *source = of(base);
    int rc;

    source->chunk_size = chunk_size;
    rc = tz_session_view_count_begin(source->view);
    if (rc == 0) {
        rc = count_uses(source);
        tz_session_view_count_end(source->view);
    }
    return rc;
}

/* ---- setting up ---- */

static void destroy(tz_source *base)
{
    tz_extents_destroy(of(base)->map);
    tz_session_view_release(of(base)->view);
    free(of(base));
}

static const tz_source_ops extents_source_ops = {
    .prepare = prepare, .load = load, .ahead = ahead, .activity = activity, .destroy = destroy};

/* The grain of all extents; -ERANGE when one ends past the volume. */
static int look_at_extents(extents_source *source)
{
    uint64_t bits = source->view->track_size;

    for (uint64_t i = 0; i < tz_extents_count(source->map); i++) {
        tz_extent extent = tz_extents_at(source->map, i);

        if (extent.physical + extent.length > source->view->volume_size)
            return -ERANGE;
        bits |= extent.physical | extent.length;
    }
    /* What begins off the grain is found when its chunk's turn comes. */
    source->grain = tz_max_u64(bits & -bits, source->view->track_size / MOST_PROBES);
    return 0;
}

int tz_source_extents(tz_source **out, tz_session_view *view, uint64_t size, const uint64_t *logical,
                      const uint64_t *physical, const uint64_t *length, uint64_t count)
{
    extents_source *source = calloc(1, sizeof(*source));
    int rc;

    if (!source)
        return -ENOMEM;
    rc = tz_extents_build(&source->map, logical, physical, length, NULL, count, TZ_EXTENTS_REVERSE);
    source->view = view;
    if (rc == 0)
        rc = look_at_extents(source);
    if (rc < 0) {
        tz_extents_destroy(source->map);
        free(source);
        return rc;
    }
    source->base.ops = &extents_source_ops;
    source->base.size = size;
    tz_session_view_hold(view);
    *out = &source->base;
    return 0;
}
