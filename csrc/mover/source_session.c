/* SPDX-License-Identifier: Apache-2.0
 *
 * A served volume under a session, all of it: every chunk is one run. (Loading: session_load.c.)
 */
#include <errno.h>
#include <stdlib.h>

#include "session_view.h"

/* Slots looked at for one claim ahead of order: bounds the time a claim takes when most are in flight already. */
#define TZ_AHEAD_SCAN 4096

typedef struct session_source {
    tz_source base;
    tz_session_view *view;
    uint32_t chunk_size;
    uint32_t scan; /* next slot to look at for a claim ahead; under the transfer's lock */
} session_source;

static session_source *of(tz_source *base)
{
    return tz_container_of(base, session_source, base);
}

static void activity(const tz_source *base, tz_activity *out)
{
    tz_session_view_activity(tz_container_of(base, session_source, base)->view, out);
}

/* Under the transfer's lock: a chunk that holds a live slot and is not claimed. */
static int ahead(tz_source *base, tz_bitmap *claimed, uint64_t *number)
{
    session_source *source = of(base);
    const tz_slot *slots = source->view->slot_table;

    if (atomic_load_explicit(&source->view->header->used_slots, memory_order_relaxed) <= source->view->plan.low_mark)
        return 0;
    for (uint32_t i = 0; i < TZ_AHEAD_SCAN && i < source->view->slots; i++) {
        uint64_t track = atomic_load(&slots[source->scan].track), chunk;

        source->scan = source->scan + 1 < source->view->slots ? source->scan + 1 : 0;
        if (track == 0)
            continue;
        if (track > source->view->tracks)
            return -EPROTO;
        chunk = ((track - 1) << source->view->track_shift) / source->chunk_size;
        if (tz_bitmap_claim(claimed, chunk)) {
            *number = chunk;
            return 1;
        }
    }
    return 0;
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
