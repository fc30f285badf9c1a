/* SPDX-License-Identifier: Apache-2.0
 *
 * A session's memory as the mover maps it, and loading chunks under it: what the sources over a session share.
 *
 * Errors   of loading: -ESTALE the session is punctured; -EPROTO its memory makes no sense; -ENODATA the volume ends
 *          early; what its reads say.
 * Memory   freed with the last holder.
 * Threads  constant but for the atomics, what a lock guards, and `uses`: changed under `lock` until `begun`.
 */
#ifndef TZ_SESSION_VIEW_H
#define TZ_SESSION_VIEW_H

#include "holes.h"
#include "internal.h"
#include "session_uses.h"
#include "tz/extents.h"

struct tz_session_view {
    _Atomic uint32_t holders;
    const tz_session_header *header; /* mapped read-only; only its atomics are looked at */
    tz_session_header plan;          /* its constants as they were checked: the mapping may change at any time */
    uint64_t owned_bytes;
    void *shared;
    uint64_t shared_bytes;
    tz_drain_ring *ring;
    _Atomic uint64_t *words;
    const tz_slot *slot_table;
    tz_file volume, tier; /* tier.fd -1: none */
    int drain_fd;
    _Atomic bool drains; /* past the low mark, as of the last look */

    /* Checked copies. */
    uint64_t volume_size, track_size, tracks;
    uint32_t track_shift, slots, memory_slots;

    pthread_mutex_t drain_lock; /* the ring has one producer */

    tz_holes holes; /* of the volume */

    pthread_mutex_t lock;
    tz_session_uses uses;
    _Atomic bool begun; /* a chunk was loaded: uses are only counted down from now on */
};

/* Where to go on in the table of live slots; all zero at first. */
typedef struct tz_live_scan {
    uint32_t bucket;
    uint32_t chain; /* slot + 1; 0: the bucket's first */
} tz_live_scan;

/* ---- session_view.c ---- */

tz_session_view *tz_session_view_hold(tz_session_view *view);

/* Between these two uses are added; -EBUSY, and nothing to end, when a chunk was loaded already. */
int tz_session_view_count_begin(tz_session_view *view);
void tz_session_view_count_end(tz_session_view *view);

void tz_session_view_activity(tz_session_view *view, tz_activity *out);

/* The live slot of a preserved track, or TZ_SLOT_NONE: none, and the session is broken, or the transfer is to stop. */
uint32_t tz_session_view_find(const tz_session_view *view, const tz_chunk *chunk, uint64_t track);
bool tz_session_view_is_zero(const tz_session_view *view, uint64_t track);
const uint8_t *tz_session_view_memory(const tz_session_view *view, uint32_t slot); /* of the memory tier */

/* Bytes of a hole of the volume that begins at `physical` or before and reaches beyond it, as it is now; 0: data, or not
 * known. What it says is as good as a read that ends now, and like one has to be validated afterwards. */
uint64_t tz_session_view_hole(tz_session_view *view, uint64_t physical);

/* Is the sidefile to be drained first now? */
bool tz_session_view_drains(tz_session_view *view);

/* The track of the next live before-image, in an order as good as random: 1; 0 when `left` places have been looked at;
 * -EPROTO. */
int tz_session_view_next_live(const tz_session_view *view, tz_live_scan *scan, uint32_t *left, uint64_t *track);

/* Gives a slot back, its content taken; told to the gate with the chunk's others by announce (0 or -errno). */
void tz_session_view_push(tz_session_view *view, tz_chunk *chunk, uint32_t slot);
int tz_session_view_announce(tz_session_view *view, tz_chunk *chunk);

/* ---- session_load.c ---- */

/* The run that begins at a logical address of the source: as tz_extents_lookup. */
typedef bool (*tz_run_find)(tz_source *source, uint64_t logical, tz_extent *run);

/* A source's `load`. */
int tz_session_load(tz_session_view *view, tz_chunk *chunk, tz_run_find find);

#endif
