/* SPDX-License-Identifier: Apache-2.0
 *
 * How many runs of a session's sources need each track.
 *
 * A track may hold blocks of several files, or of several runs of one. Its `copied` bit may be set only when all that
 * need it have taken their part, so uses are counted before the first chunk is read, and counted down:
 *
 *   nobody ──▶ one run (a bit) ──▶ several (a bit, and an entry: how many still have to take their part)
 *
 * Memory   two bits a track of the volume, of which only pages that designated tracks lie in are touched; an entry of 16
 *          bytes a track with several uses, in a table that is at least a quarter full.
 * Threads  add: one, before the first done. several, done: any, afterwards.
 */
#ifndef TZ_SESSION_USES_H
#define TZ_SESSION_USES_H

#include <stdatomic.h>

#include "tz/session_layout.h"

typedef struct tz_use {
    uint64_t track;        /* number + 1; 0: no entry */
    _Atomic uint64_t left; /* uses */
} tz_use;

typedef struct tz_session_uses {
    uint64_t tracks;
    bool whole;               /* a source needs every track once */
    uint32_t *once, *several; /* TZ_TRACKS_A_WORD tracks a word; NULL: nobody needs a part of the volume */
    tz_use *table;            /* open addressing */
    uint64_t room, entries;   /* room: a power of two, or 0 */
} tz_session_uses;

void tz_session_uses_init(tz_session_uses *uses, uint64_t tracks);
void tz_session_uses_clear(tz_session_uses *uses);

/* One more use of the tracks [first, first + count); of all tracks. -ENOMEM: some may have been counted, which only
 * means that their before-images are kept until the session ends. */
int tz_session_uses_add(tz_session_uses *uses, uint64_t first, uint64_t count);
int tz_session_uses_add_whole(tz_session_uses *uses);

/* The tracks of a word that have several uses, a bit each. */
static inline uint32_t tz_session_uses_several(const tz_session_uses *uses, uint64_t word)
{
    return uses->several ? uses->several[word] : 0;
}

/* One use of a track with several is over, its part taken. True: it was the last one. Whoever is told so sees all that
 * the others did before. */
bool tz_session_uses_done(tz_session_uses *uses, uint64_t track);

#endif
