/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "session_uses.h"

#define FIRST_ROOM 64

static uint64_t words(const tz_session_uses *uses)
{
    return (uses->tracks + TZ_TRACKS_A_WORD - 1) / TZ_TRACKS_A_WORD;
}

/* ---- the table ---- */

static uint64_t place_of(uint64_t track, uint64_t room)
{
    return (track * UINT64_C(0x9e3779b97f4a7c15)) >> 32 & (room - 1);
}

/* The entry of a track, or the free place where it would be. */
static tz_use *find(tz_use *table, uint64_t room, uint64_t track)
{
    uint64_t at = place_of(track, room);

    while (table[at].track && table[at].track != track + 1)
        at = (at + 1) & (room - 1);
    return &table[at];
}

static int grow(tz_session_uses *uses)
{
    uint64_t room = uses->room ? 2 * uses->room : FIRST_ROOM;
    tz_use *table = calloc(room, sizeof(*table));

    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < uses->room; i++) {
        const tz_use *old = &uses->table[i];
        tz_use *use;

        if (!old->track)
            continue;
        use = find(table, room, old->track - 1);
        use->track = old->track;
        atomic_init(&use->left, atomic_load_explicit(&old->left, memory_order_relaxed));
    }
    free(uses->table);
    uses->table = table;
    uses->room = room;
    return 0;
}

/* A track that `before` runs were known to need is needed by one more. */
static int add_several(tz_session_uses *uses, uint64_t track, uint64_t before)
{
    uint64_t left;
    tz_use *use;

    if (uses->entries >= uses->room / 2 && grow(uses) < 0)
        return -ENOMEM;
    use = find(uses->table, uses->room, track);
    left = use->track ? atomic_load_explicit(&use->left, memory_order_relaxed) : before;
    uses->entries += !use->track;
    use->track = track + 1;
    atomic_store_explicit(&use->left, left + 1, memory_order_relaxed);
    uses->several[track / TZ_TRACKS_A_WORD] |= UINT32_C(1) << track % TZ_TRACKS_A_WORD;
    return 0;
}

static int add_each(tz_session_uses *uses, uint64_t word, uint32_t mask)
{
    for (; mask; mask &= mask - 1) {
        int rc = add_several(uses, word * TZ_TRACKS_A_WORD + (uint64_t)__builtin_ctz(mask), 1);

        if (rc < 0)
            return rc;
    }
    return 0;
}

/* ---- for the view ---- */

void tz_session_uses_init(tz_session_uses *uses, uint64_t tracks)
{
    *uses = (tz_session_uses){.tracks = tracks};
}

void tz_session_uses_clear(tz_session_uses *uses)
{
    free(uses->once);
    free(uses->several);
    free(uses->table);
}

int tz_session_uses_add(tz_session_uses *uses, uint64_t first, uint64_t count)
{
    uint32_t n;

    if (!uses->once)
        uses->once = calloc(words(uses), sizeof(*uses->once));
    if (!uses->several)
        uses->several = calloc(words(uses), sizeof(*uses->several));
    if (!uses->once || !uses->several)
        return -ENOMEM;
    for (; count > 0; first += n, count -= n) {
        uint64_t word = first / TZ_TRACKS_A_WORD;
        uint32_t mask = tz_track_mask(first, count, &n), before = uses->once[word];
        int rc;

        uses->once[word] |= mask;
        rc = add_each(uses, word, uses->whole ? mask : mask & before);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int tz_session_uses_add_whole(tz_session_uses *uses)
{
    if (uses->whole)
        return -EBUSY;
    uses->whole = true;
    for (uint64_t word = 0; uses->once && word < words(uses); word++) {
        int rc = add_each(uses, word, uses->once[word]);

        if (rc < 0)
            return rc;
    }
    return 0;
}

bool tz_session_uses_done(tz_session_uses *uses, uint64_t track)
{
    tz_use *use = find(uses->table, uses->room, track);

    assert(use->track);
    return atomic_fetch_sub(&use->left, 1) == 1;
}
