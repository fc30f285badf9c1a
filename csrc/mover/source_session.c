/* SPDX-License-Identifier: Apache-2.0
 *
 * A served volume under a session, all of it: every chunk is one run. (Loading: session_load.c.)
 */
#include <errno.h>
#include <stdlib.h>

#include "session_view.h"

/* Ahead of order: a chunk whose tracks are being written has live before-images. Of several that are met at random, the
 * one with the most of them is taken: it gives back the most slots for one read, and where writes were dense they will
 * be again, which the rest of the chunk is then safe from. Against the first that is met, the most slots in use at once,
 * for uniform updates and for streams of them, in tests/c/test_mover_ahead.c: 4 compared 7 and 9 % fewer, 16 10 and
 * 11 %, 64 11 and 12 %; for updates to a tenth of the chunks 4 % with any.
 * Places looked at for one claim: bounds the time a claim takes when most are in flight already. */
#define TZ_AHEAD_CANDIDATES 16
#define TZ_AHEAD_SCAN       4096

typedef struct session_source {
    tz_source base;
    tz_session_view *view;
    uint32_t chunk_size;
    tz_live_scan scan; /* for claims ahead; under the transfer's lock */
} session_source;

static session_source *of(tz_source *base)
{
    return tz_container_of(base, session_source, base);
}

static void activity(const tz_source *base, tz_activity *out)
{
    tz_session_view_activity(tz_container_of(base, session_source, base)->view, out);
}

/* Slots that the chunk's tracks hold, and that would come back with it. */
static uint32_t live_in(const session_source *source, uint64_t chunk)
{
    const tz_session_view *view = source->view;
    const _Atomic uint64_t *zeros = (const _Atomic uint64_t *)((uintptr_t)view->header + view->plan.zero_offset);
    uint64_t track = (chunk * source->chunk_size) >> view->track_shift;
    uint64_t end = tz_min_u64(view->tracks, track + (source->chunk_size >> view->track_shift));
    uint32_t live = 0, n;

    for (; track < end; track += n) {
        uint64_t w = track / TZ_TRACKS_A_WORD, word = atomic_load_explicit(&view->words[w], memory_order_relaxed);
        uint32_t zero = (uint32_t)(atomic_load_explicit(&zeros[w / 2], memory_order_relaxed) >> (w % 2 * 32));
        uint32_t mask = tz_track_mask(track, end - track, &n);

        live += (uint32_t)__builtin_popcount((uint32_t)(word >> 32) & ~(uint32_t)word & ~zero & mask);
    }
    return live;
}

/* Under the transfer's lock. */
static int ahead(tz_source *base, tz_bitmap *claimed, uint64_t *number)
{
    session_source *source = of(base);
    uint32_t left = TZ_AHEAD_SCAN, most = 0;
    uint64_t track;

    if (!tz_session_view_drains(source->view))
        return 0;
    for (uint32_t candidates = 0; candidates < TZ_AHEAD_CANDIDATES;) {
        int rc = tz_session_view_next_live(source->view, &source->scan, &left, &track);
        uint64_t chunk;
        uint32_t live;

        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        chunk = (track << source->view->track_shift) / source->chunk_size;
        if (tz_bitmap_test(claimed, chunk))
            continue;
        candidates++;
        live = live_in(source, chunk);
        if (live > most) {
            most = live;
            *number = chunk;
        }
    }
    return most > 0 && tz_bitmap_claim(claimed, *number);
}

static bool find_run(tz_source *base, uint64_t logical, tz_extent *run)
{
    *run = (tz_extent){.logical = logical, .physical = logical, .length = base->size - logical};
    return true;
}

static int load(tz_source *base, tz_chunk *chunk)
{
    return tz_session_load(of(base)->view, chunk, find_run);
}

static int prepare(tz_source *base, uint32_t chunk_size)
{
    session_source *source = of(base);
    int rc;

    if (chunk_size % source->view->track_size)
        return -EINVAL;
    source->chunk_size = chunk_size;
    rc = tz_session_view_count_begin(source->view);
    if (rc == 0) {
        rc = tz_session_uses_add_whole(&source->view->uses);
        tz_session_view_count_end(source->view);
    }
    return rc;
}

static void destroy(tz_source *base)
{
    tz_session_view_release(of(base)->view);
    free(of(base));
}

static const tz_source_ops session_source_ops = {
    .prepare = prepare, .load = load, .ahead = ahead, .activity = activity, .destroy = destroy};

int tz_source_session(tz_source **out, tz_session_view *view)
{
    session_source *source = calloc(1, sizeof(*source));

    if (!source)
        return -ENOMEM;
    source->base.ops = &session_source_ops;
    source->base.size = view->volume_size;
    source->view = tz_session_view_hold(view);
    *out = &source->base;
    return 0;
}
