/* SPDX-License-Identifier: Apache-2.0
 *
 * The extent map: the concordance of one dataset, formed at T0, from dataset-logical to volume-physical
 * addresses (bytes, both), and back.
 *
 *   logical    0 ├──A──┤ hole ├──B──┤├zero┤          every logical byte is in one extent at most
 *   physical     ├──B──┤├──A──┤                      physical bytes may be shared by several (reflinks)
 *
 * Built once from extents in any order: sorted, checked, neighbours that continue each other both ways made one. An
 * extent marked zero (unwritten, preallocated) reads as zeros whatever lies on the volume: it has no
 * physical place and is in no domain.
 *
 * Errors   -EINVAL logical overlap, length 0, unknown flag or option; -EOVERFLOW an extent ends past
 *          TZ_EXTENT_END; -ENOMEM; -ERANGE see tz_extents_tracks.
 * Memory   one object, about 25 bytes an extent, 50 with reverse look-up, 58 when physical bytes are
 *          shared; 32 more while it is built.
 * Threads  constant once built: any number of threads may look up.
 */
#ifndef TZ_EXTENTS_H
#define TZ_EXTENTS_H

#include "tz/bitmap.h"

#define TZ_EXTENT_END  ((uint64_t)INT64_MAX) /* no address reaches it: file offsets are signed */
#define TZ_EXTENT_NONE UINT64_MAX            /* the physical address of what has none; the logical address of nobody */

enum {
    TZ_EXTENT_ZERO = 1 << 0, /* reads as zeros, has no physical place */
};

enum {
    TZ_EXTENTS_REVERSE = 1 << 0, /* build option: look-up by physical address, too */
};

typedef struct tz_extent {
    uint64_t logical, physical, length; /* bytes */
    uint32_t flags;
    uint32_t reserved; /* zero */
} tz_extent;

typedef struct tz_extents tz_extents;

/* From columns of `count` entries; `flags` may be NULL: all data. `physical` of a zero extent is ignored. */
int tz_extents_build(tz_extents **out, const uint64_t *logical, const uint64_t *physical, const uint64_t *length,
                     const uint32_t *flags, uint64_t count, unsigned options);
void tz_extents_destroy(tz_extents *map);

uint64_t tz_extents_count(const tz_extents *map);            /* after coalescing */
tz_extent tz_extents_at(const tz_extents *map, uint64_t at); /* in order of logical addresses */
uint64_t tz_extents_bytes(const tz_extents *map);            /* of all extents that are data */
bool tz_extents_has_reverse(const tz_extents *map);

/* The run that starts at `logical`: up to the end of its extent (true), or, in a hole, up to the next extent or to
 * UINT64_MAX, with physical TZ_EXTENT_NONE and TZ_EXTENT_ZERO set (false). */
bool tz_extents_lookup(const tz_extents *map, uint64_t logical, tz_extent *run);

/* The runs of data that start at `physical`, one for each logical address it is seen at, up to `room` of
 * them, in order of their extents' physical addresses. Returns how many there are. Needs TZ_EXTENTS_REVERSE (asserted).
 */
uint64_t tz_extents_reverse(const tz_extents *map, uint64_t physical, tz_extent *runs, uint64_t room);

/* For every address of `from` its counterpart in `to`, or TZ_EXTENT_NONE (hole, zero; nobody's). `to` may be
 * `from`. A physical address with several counterparts has the lowest. Searches are interleaved, so that cache misses
 * overlap; stretches of non-decreasing, dense addresses are walked without searching. */
void tz_extents_lookup_batch(const tz_extents *map, const uint64_t *from, uint64_t *to, uint64_t count);
void tz_extents_reverse_batch(const tz_extents *map, const uint64_t *from, uint64_t *to, uint64_t count);

/* Sets the bit of every track of the volume that data of the map touches: the domain of a session. `track_size` is a
 * power of two (asserted). -ERANGE, and nothing set, when an extent lies past the last track. */
int tz_extents_tracks(const tz_extents *map, uint64_t track_size, tz_bitmap *tracks);

#endif
